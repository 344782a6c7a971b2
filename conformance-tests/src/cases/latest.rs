//! Cases about latest.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
