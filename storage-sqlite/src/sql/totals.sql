-- Number and extent of the sealed samples of every series.
UNION ALL
SELECT 3, series_id, min(start_ms), max(end_ms), sum(count), 0.0, 0.0, 0.0, 0.0, 0.0,
       NULL, NULL, 0, 0, NULL
FROM blocks GROUP BY series_id
