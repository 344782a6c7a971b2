//! Cases about capabilities.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
