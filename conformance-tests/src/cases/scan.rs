//! Cases about scan.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
