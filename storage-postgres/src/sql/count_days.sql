-- Adds what a straight copy stored to the days.
INSERT INTO days (day, slot, samples, oldest, newest)
SELECT ((u.oldest AT TIME ZONE 'UTC')::date), $1, u.samples, u.oldest, u.newest
FROM unnest($2::bigint[], $3::timestamptz[], $4::timestamptz[]) AS u (samples, oldest, newest)
ON CONFLICT (day, slot) DO UPDATE
SET samples = days.samples + EXCLUDED.samples,
    oldest = least(days.oldest, EXCLUDED.oldest),
    newest = greatest(days.newest, EXCLUDED.newest)
