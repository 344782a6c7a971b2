//! Cases about limits.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
