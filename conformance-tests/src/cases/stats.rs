//! Cases about stats.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
