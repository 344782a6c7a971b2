//! Wrappers that are backends themselves, one concern each.
