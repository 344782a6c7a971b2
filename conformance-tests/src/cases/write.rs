//! Cases about write.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
