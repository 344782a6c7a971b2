-- What the Community edition adds, written for TimescaleDB 2.19: chunks older than a week are
-- compressed, by series. Late samples and prunes go into compressed chunks as into others.
ALTER TABLE samples SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'series_id',
    timescaledb.compress_orderby = 'ts');
SELECT {timescaledb}.add_compression_policy('samples', interval '7 days');
