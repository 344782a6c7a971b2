//! Cases about aggregate.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
