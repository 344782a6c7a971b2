//! Cases about model.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
