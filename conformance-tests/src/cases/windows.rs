//! Cases about windows.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
