//! Cases about errors.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
