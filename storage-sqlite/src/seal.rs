//! How unsealed samples become blocks: which blocks they touch, and what replaces those.
//! Pure computation; `maintenance` reads and writes the database around it.
//!
//! Blocks of a series stay disjoint in time. New samples inside a block are merged into it, those
//! between blocks make a block of their own, unless they or the block before are few: then both
//! become one.

use storage_core::{MetricAggregation, Result};

use crate::codec::{RawSample, block};
use crate::read::summary_of;

/// Blocks below this many samples take in what follows them.
const SMALL: usize = 512;

/// Blocks from this many samples on are not grown by what follows them.
const GROWN: usize = 1024;

/// Blocks grow up to this many samples where as much follows them as they hold. Twice as large they
/// are a seventh smaller, and pages of the file are filled better.
const FULL: usize = 2560;

/// What is cut when a merge makes a block too large.
const CUT: usize = 2048;

/// A block that new samples may touch: the row without its summary.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OldBlock {
    pub(crate) series_id: i64,
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) count: usize,
    pub(crate) payload_id: i64,
    pub(crate) payload_bytes: usize,
}

/// Samples that become blocks together, with the block that they replace.
#[derive(Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) series_id: i64,
    pub(crate) old: Option<OldBlock>,
    /// In order of time, one per millisecond; they replace sealed ones of the same time.
    pub(crate) new: Vec<RawSample>,
}

/// A block ready to be stored.
#[derive(Debug)]
pub(crate) struct NewBlock {
    pub(crate) series_id: i64,
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) summary: MetricAggregation,
    pub(crate) has_metadata: bool,
    pub(crate) payload: Vec<u8>,
}

/// Divides the new samples of one series over the blocks around them.
///
/// Both come in order of time; `old` holds at least every block that reaches between the first and
/// the last new sample, and the one before.
pub(crate) fn plan(series_id: i64, new: Vec<RawSample>, old: &[OldBlock]) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut new = new.into_iter();
    let mut take_until = |limit_ms: i64| -> Vec<RawSample> {
        let taken = new.as_slice().partition_point(|sample| sample.ms < limit_ms);
        new.by_ref().take(taken).collect()
    };
    let group = |old: Option<&OldBlock>, new| Group { series_id, old: old.cloned(), new };
    let first_start_ms = old.first().map_or(i64::MAX, |block| block.start_ms);
    groups.push(group(None, take_until(first_start_ms)));
    for (index, block) in old.iter().enumerate() {
        let next_start_ms = old.get(index + 1).map_or(i64::MAX, |next| next.start_ms);
        let mut inside = take_until(block.end_ms.saturating_add(1));
        let after = take_until(next_start_ms);
        if is_joined(block, &after) {
            inside.extend(after);
            groups.push(group(Some(block), inside));
        } else {
            groups.push(group(Some(block), inside));
            groups.push(group(None, after));
        }
    }
    groups.retain(|group| !group.new.is_empty());
    groups
}

fn is_joined(block: &OldBlock, after: &[RawSample]) -> bool {
    block.count < SMALL
        || (block.count < GROWN && after.len() < SMALL)
        || (after.len() >= SMALL && block.count + after.len() <= FULL && saves_space(block, after))
}

/// Whether a block takes less of the file together with what follows it than apart, as far as its
/// size foretells. It need not: a page of 4 KiB holds three payloads of 1.2 KB, but only one of 2.3.
fn saves_space(block: &OldBlock, after: &[RawSample]) -> bool {
    // Packed together, samples take a little less than apart.
    const JOINED_PERCENT: usize = 92;
    let bytes_of = |samples: usize| block.payload_bytes * samples / block.count.max(1);
    let joined = bytes_of(block.count + after.len()) * JOINED_PERCENT / 100;
    file_bytes(joined) < file_bytes(block.payload_bytes) + file_bytes(bytes_of(after.len()))
}

/// Returns what a block takes of the file, by the rules of SQLite's table leaves: what does not fit
/// into a page goes to pages of its own, but for a rest that shares a page with others.
fn file_bytes(payload_bytes: usize) -> usize {
    const PAGE: usize = 4096;
    const OVERFLOW: usize = PAGE - 4;
    const LOCAL_MAX: usize = PAGE - 35;
    const LOCAL_MIN: usize = (PAGE - 12) * 32 / 255 - 23;
    const CELL: usize = 12;
    const SUMMARY: usize = 70;
    let rest = LOCAL_MIN + payload_bytes.saturating_sub(LOCAL_MIN) % OVERFLOW;
    let local = match payload_bytes {
        ..=LOCAL_MAX => payload_bytes,
        _ if rest <= LOCAL_MAX => rest,
        _ => LOCAL_MIN,
    };
    let overflow_pages = (payload_bytes - local).div_ceil(OVERFLOW);
    let cells_per_page = ((PAGE - 8) / (local + CELL)).max(1);
    SUMMARY + overflow_pages * PAGE + PAGE / cells_per_page
}

/// Returns the blocks that a group becomes, given the payload of its old block, and that block if
/// they replace it.
///
/// A damaged block stays as it is where new samples merely follow it: it must not keep the rest of
/// the store from being sealed.
pub(crate) fn encode(
    group: Group,
    old_payload: Option<&[u8]>,
) -> Result<(Option<OldBlock>, Vec<NewBlock>)> {
    let Group { series_id, mut old, new } = group;
    let follows = |old: &OldBlock| new.first().is_some_and(|first| first.ms > old.end_ms);
    let samples = match old_payload.map(block::decode) {
        Some(Err(_)) if old.as_ref().is_some_and(follows) => {
            old = None;
            new
        }
        Some(decoded) => merge(decoded?, new),
        None => new,
    };
    let parts = if samples.len() <= block::SAMPLES_MAX { 1 } else { samples.len().div_ceil(CUT) };
    let part_samples = samples.len().div_ceil(parts).max(1);
    let blocks = samples.chunks(part_samples).map(|part| new_block(series_id, part));
    Ok((old, blocks.collect::<Result<_>>()?))
}

/// Returns the block of samples in order of time; there is at least one.
pub(crate) fn new_block(series_id: i64, samples: &[RawSample]) -> Result<NewBlock> {
    Ok(NewBlock {
        series_id,
        start_ms: samples[0].ms,
        end_ms: samples[samples.len() - 1].ms,
        summary: summary_of(samples),
        has_metadata: samples.iter().any(|sample| sample.metadata.is_some()),
        payload: block::encode(samples)?,
    })
}

/// Merges two runs in order of time; where both have a sample, the new one stays.
fn merge(old: Vec<RawSample>, new: Vec<RawSample>) -> Vec<RawSample> {
    let mut merged = Vec::with_capacity(old.len() + new.len());
    let mut new = new.into_iter().peekable();
    for sample in old {
        while let Some(earlier) = new.next_if(|earlier| earlier.ms < sample.ms) {
            merged.push(earlier);
        }
        match new.next_if(|same| same.ms == sample.ms) {
            Some(replacement) => merged.push(replacement),
            None => merged.push(sample),
        }
    }
    merged.extend(new);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: i64) -> RawSample {
        RawSample { ms, value: ms as f64, metadata: None }
    }

    fn old(start_ms: i64, end_ms: i64, count: usize) -> OldBlock {
        let payload_bytes = count / 3;
        OldBlock { series_id: 1, start_ms, end_ms, count, payload_id: start_ms, payload_bytes }
    }

    /// Plans, and returns per group the start of its old block and the times of its new samples.
    fn planned(times: &[i64], blocks: &[OldBlock]) -> Vec<(Option<i64>, Vec<i64>)> {
        let groups = plan(1, times.iter().copied().map(sample).collect(), blocks);
        let shape = |group: Group| {
            let times = group.new.iter().map(|sample| sample.ms).collect();
            (group.old.map(|block| block.start_ms), times)
        };
        groups.into_iter().map(shape).collect()
    }

    #[test]
    fn new_samples_go_where_they_belong() {
        let blocks = [old(100, 200, 2000), old(300, 400, 2000)];
        assert_eq!(
            planned(&[50, 150, 200, 250, 300, 500], &blocks),
            [
                (None, vec![50]),
                (Some(100), vec![150, 200]),
                (None, vec![250]),
                (Some(300), vec![300]),
                (None, vec![500]),
            ]
        );
    }

    #[test]
    fn small_blocks_take_in_what_follows() {
        assert_eq!(planned(&[5, 6], &[old(1, 2, 10)]), [(Some(1), vec![5, 6])]);
        assert_eq!(planned(&[5], &[old(1, 2, 1000)]), [(Some(1), vec![5])]);
        assert_eq!(planned(&[5], &[old(1, 2, 1024)]), [(None, vec![5])]);
        let many: Vec<i64> = (5..1305).collect();
        assert_eq!(planned(&many, &[old(1, 2, 1024)]), [(Some(1), many.clone())]);
        assert_eq!(planned(&many, &[old(1, 2, 2048)]), [(None, many.clone())]);
        assert_eq!(planned(&[5], &[]), [(None, vec![5])]);
    }

    #[test]
    fn a_plan_holds_each_sample_once() {
        let blocks: Vec<_> = (0..100).map(|n| old(n * 2000, n * 2000 + 1999, 2000)).collect();
        let groups = plan(1, (0..200_000).map(sample).collect(), &blocks);
        let held: usize = groups.iter().map(|group| group.new.capacity()).sum();
        assert!(groups.len() == 100 && held <= 400_000, "{held} for 200000");
    }

    #[test]
    fn blocks_grow_where_that_saves_space() {
        let after: Vec<_> = (5000..6024).map(sample).collect();
        let grows =
            |payload_bytes| saves_space(&OldBlock { payload_bytes, ..old(1, 2, 1024) }, &after);
        // Whole numbers and noise do, two decimals do not.
        assert!(grows(345) && grows(6400) && !grows(1190));
        assert!(file_bytes(4061) < file_bytes(6400) && file_bytes(12_800) < 2 * file_bytes(6400));
    }

    #[test]
    fn a_damaged_block_stays_where_new_samples_only_follow_it() {
        let group = |ms| Group { series_id: 1, old: Some(old(1, 2, 2)), new: vec![sample(ms)] };
        let (replaced, blocks) = encode(group(3), Some(b"damaged")).unwrap();
        assert_eq!((replaced, blocks.len()), (None, 1));
        assert!(encode(group(2), Some(b"damaged")).is_err());
    }

    #[test]
    fn merged_blocks_are_cut_when_they_get_too_large() {
        let old_samples: Vec<_> = (0..4096).map(|ms| sample(ms * 2)).collect();
        let payload = block::encode(&old_samples).unwrap();
        let new = vec![RawSample { value: -1.0, ..sample(2) }, sample(3)];
        let group = Group { series_id: 1, old: None, new };
        let (_, blocks) = encode(group, Some(&payload)).unwrap();
        let decoded: Vec<_> =
            blocks.iter().flat_map(|block| block::decode(&block.payload).unwrap()).collect();
        assert_eq!((blocks.len(), decoded.len()), (3, 4097));
        assert!(decoded.is_sorted_by(|a, b| a.ms < b.ms));
        assert_eq!(decoded[1].value, -1.0);
        let counts: u64 = blocks.iter().map(|block| block.summary.count).sum();
        assert_eq!(counts, 4097);
    }
}
