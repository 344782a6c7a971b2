//! What is stored of one series in a range: unsealed samples over sealed blocks, and how the two
//! become one answer. Pure computation; nothing here reads the database.

use std::cmp::Ordering;
use std::ops::Range;

use storage_core::metrics::time::window_start_ms;
use storage_core::metrics::{Accumulator, Window, WindowBuilder};
use storage_core::{MetricAggregation, Result, TimeRange};

use crate::codec::times::Times;
use crate::codec::{RawSample, block, corrupt};

/// A row of the table `blocks`, with its payload where it was asked for.
#[derive(Debug)]
pub(crate) struct BlockRow {
    pub(crate) series_id: i64,
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) summary: MetricAggregation,
    pub(crate) has_metadata: bool,
    pub(crate) payload: Option<Vec<u8>>,
}

/// The samples of one series in a range. Unsealed samples replace sealed ones of the same time.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) series_id: i64,
    pub(crate) range: TimeRange,
    /// In order of time, one per millisecond, inside the range.
    pub(crate) unsealed: Vec<RawSample>,
    /// In order of time, disjoint, each reaching into the range.
    pub(crate) blocks: Vec<BlockRow>,
}

/// A stretch of a slice, for aggregates.
enum Piece<'a> {
    Sample(i64, f64),
    /// The samples of a part of a block.
    Run(&'a Times, Range<usize>, &'a [f64]),
    Block(&'a BlockRow),
}

impl Slice {
    /// Whether a block that unsealed samples reach into came without its payload.
    pub(crate) fn lacks_payload(&self) -> bool {
        let overlapped = |block: &BlockRow| !self.unsealed_between(block).is_empty();
        self.blocks.iter().any(|block| block.payload.is_none() && overlapped(block))
    }

    /// Returns the samples in order of time, each turned into something. Every block must have its
    /// payload.
    pub(crate) fn samples<T>(&self, turn: impl Fn(&RawSample) -> Result<T>) -> Result<Vec<T>> {
        let mut samples = Vec::with_capacity(self.samples_min());
        let mut unsealed = self.unsealed.as_slice();
        let mut take = |sealed: &RawSample| {
            let older = unsealed.partition_point(|newer| newer.ms < sealed.ms);
            for newer in &unsealed[..older] {
                samples.push(turn(newer)?);
            }
            unsealed = &unsealed[older..];
            if unsealed.first().is_none_or(|newer| newer.ms != sealed.ms) {
                samples.push(turn(sealed)?);
            }
            Ok(())
        };
        for block in &self.blocks {
            if block.has_metadata {
                let sealed = block::decode(payload_of(block)?)?;
                sealed.iter().filter(|sealed| self.holds(sealed.ms)).try_for_each(&mut take)?;
                continue;
            }
            let (times, values, part) = self.part_of(block)?;
            for (index, &value) in part.clone().zip(&values[part]) {
                take(&RawSample { ms: times.at(index), value, metadata: None })?;
            }
        }
        for newer in unsealed {
            samples.push(turn(newer)?);
        }
        Ok(samples)
    }

    /// So many samples there are, not counting blocks that the range cuts.
    fn samples_min(&self) -> usize {
        let whole = |block: &&BlockRow| self.holds(block.start_ms) && self.holds(block.end_ms);
        let of = |block: &BlockRow| block.summary.count.min(block::SAMPLES_MAX as u64) as usize;
        self.unsealed.len().max(self.blocks.iter().filter(whole).map(of).sum())
    }

    /// Returns the aggregate of the slice.
    pub(crate) fn aggregate(&self) -> Result<MetricAggregation> {
        let mut accumulator = Accumulator::default();
        self.visit(|piece| match piece {
            Piece::Sample(_, value) => accumulator.push(value),
            Piece::Run(_, part, values) => accumulator.push_all(&values[part]),
            Piece::Block(block) => accumulator.push_aggregation(&block.summary),
        })?;
        Ok(accumulator.finish())
    }

    /// Returns the aggregates of the windows of `width_ms` in the slice.
    pub(crate) fn windows(&self, width_ms: i64) -> Result<Vec<Window>> {
        let mut builder = WindowBuilder::new(width_ms);
        self.visit(|piece| match piece {
            Piece::Sample(ms, value) => builder.push(ms, value),
            Piece::Run(times, part, values) => {
                push_run(&mut builder, width_ms, times, part, values);
            }
            Piece::Block(block) => builder.push_aggregation(block.start_ms, &block.summary),
        })?;
        Ok(builder.finish())
    }

    /// Returns the newest `n` samples, newest first.
    pub(crate) fn newest(&self, n: usize) -> Result<Vec<RawSample>> {
        if let Some(sample) = self.newest_by_summary(n) {
            return Ok(vec![sample]);
        }
        let mut samples = self.samples(|sample| Ok(sample.clone()))?;
        samples.reverse();
        samples.truncate(n);
        Ok(samples)
    }

    /// Answers for one sample from the last block's summary alone, where that tells all.
    fn newest_by_summary(&self, n: usize) -> Option<RawSample> {
        let (block, unsealed) = (self.blocks.last(), self.unsealed.last());
        if n != 1 {
            return None;
        }
        match (block, unsealed) {
            (None, unsealed) => unsealed.cloned(),
            (Some(block), Some(sample)) if sample.ms >= block.end_ms => Some(sample.clone()),
            (Some(block), _) if block.has_metadata => None,
            (Some(block), _) => {
                Some(RawSample { ms: block.end_ms, value: block.summary.last?, metadata: None })
            }
        }
    }

    /// Returns how many of the unsealed samples replace a sealed one.
    pub(crate) fn replaced(&self) -> Result<u64> {
        let mut replaced = 0;
        for block in &self.blocks {
            let unsealed = self.unsealed_between(block);
            if !unsealed.is_empty() {
                let (times, _) = block::decode_values(payload_of(block)?, i64::MIN)?;
                let is_sealed = |sample: &&RawSample| times.contains(sample.ms);
                replaced += unsealed.iter().filter(is_sealed).count() as u64;
            }
        }
        Ok(replaced)
    }

    fn visit(&self, mut take: impl FnMut(Piece<'_>)) -> Result<()> {
        let mut unsealed = self.unsealed.as_slice();
        for block in &self.blocks {
            let before = unsealed.partition_point(|sample| sample.ms < block.start_ms);
            unsealed[..before].iter().for_each(|sample| take(sample.into()));
            unsealed = &unsealed[before..];
            let inside = unsealed.partition_point(|sample| sample.ms <= block.end_ms);
            match &block.payload {
                None if inside == 0 && self.holds(block.start_ms) && self.holds(block.end_ms) => {
                    take(Piece::Block(block));
                }
                _ => self.visit_block(block, &unsealed[..inside], &mut take)?,
            }
            unsealed = &unsealed[inside..];
        }
        unsealed.iter().for_each(|sample| take(sample.into()));
        Ok(())
    }

    /// Visits the samples of a block that lie in the range, with `newer` ones over them.
    fn visit_block(
        &self,
        block: &BlockRow,
        mut newer: &[RawSample],
        take: &mut impl FnMut(Piece<'_>),
    ) -> Result<()> {
        let (times, values, part) = self.part_of(block)?;
        if newer.is_empty() {
            take(Piece::Run(&times, part, &values));
            return Ok(());
        }
        for index in part {
            let ms = times.at(index);
            let mut replaced = false;
            while let Some((first, rest)) = newer.split_first() {
                match first.ms.cmp(&ms) {
                    Ordering::Greater => break,
                    order => replaced = order == Ordering::Equal,
                }
                take(first.into());
                newer = rest;
            }
            if !replaced {
                take(Piece::Sample(ms, values[index]));
            }
        }
        newer.iter().for_each(|sample| take(sample.into()));
        Ok(())
    }

    /// Takes a block apart without its metadata, and says which of its samples lie in the range.
    fn part_of(&self, block: &BlockRow) -> Result<(Times, Vec<f64>, Range<usize>)> {
        let (times, values) = block::decode_values(payload_of(block)?, self.range.end_ms())?;
        let part = times.before(self.range.start_ms())..times.before(self.range.end_ms());
        Ok((times, values, part))
    }

    fn unsealed_between(&self, block: &BlockRow) -> &[RawSample] {
        let from = self.unsealed.partition_point(|sample| sample.ms < block.start_ms);
        let to = self.unsealed.partition_point(|sample| sample.ms <= block.end_ms);
        &self.unsealed[from..to]
    }

    fn holds(&self, ms: i64) -> bool {
        (self.range.start_ms()..self.range.end_ms()).contains(&ms)
    }
}

/// Adds a part of a block to the windows that it lies in.
fn push_run(
    builder: &mut WindowBuilder,
    width_ms: i64,
    times: &Times,
    mut part: Range<usize>,
    values: &[f64],
) {
    while !part.is_empty() {
        let ms = times.at(part.start);
        let next_ms = window_start_ms(ms, width_ms).saturating_add(width_ms);
        let to = times.before(next_ms).clamp(part.start + 1, part.end);
        builder.push_all(ms, &values[part.start..to]);
        part.start = to;
    }
}

impl From<&RawSample> for Piece<'_> {
    fn from(sample: &RawSample) -> Self {
        Piece::Sample(sample.ms, sample.value)
    }
}

fn payload_of(block: &BlockRow) -> Result<&[u8]> {
    block.payload.as_deref().ok_or_else(|| corrupt("a block has no payload"))
}
