//! Cases about lifecycle.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
