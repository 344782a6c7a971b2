//! Cases about concurrency.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
