//! Cases about cancel.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
