//! Cases about prune.

pub(crate) fn cases() -> Vec<crate::cases::Case> {
    Vec::new()
}
