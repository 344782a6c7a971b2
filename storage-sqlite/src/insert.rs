//! How many rows one `INSERT` of several takes: each statement costs as much as some rows, and each
//! size of one is a statement of its own to prepare.

/// The most rows of one statement, a power of two.
pub(crate) const ROWS_MAX: usize = 128;

/// Takes rows apart, in their order, into as many as a statement takes: powers of two, so that
/// there are few sizes and each stays prepared.
pub(crate) fn parts<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = 1 << rest.len().min(ROWS_MAX).checked_ilog2()?;
        let (part, after) = rest.split_at(size);
        rest = after;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_powers_of_two_and_the_whole() {
        let sizes = |count: usize| {
            let rows: Vec<usize> = (0..count).collect();
            let all: Vec<usize> = parts(&rows).flatten().copied().collect();
            assert_eq!(all, rows);
            parts(&rows).map(<[_]>::len).collect::<Vec<_>>()
        };
        assert!(sizes(0).is_empty());
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(128), [128]);
        assert_eq!(sizes(360), [128, 128, 64, 32, 8]);
    }
}
