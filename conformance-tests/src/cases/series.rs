//! Cases about series.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
