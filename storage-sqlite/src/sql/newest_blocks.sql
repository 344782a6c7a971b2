-- The newest blocks of each of the series ?3 (a JSON array of ids): the last one and ?4 before it.
-- Payloads unless one sample is asked (?5) and the summary tells all of it.
UNION ALL
SELECT 3, b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
       b.has_metadata, p.bytes
FROM json_each(?3) AS chosen
CROSS JOIN blocks AS b ON b.series_id = chosen.value
    AND b.start_ms >= coalesce((SELECT start_ms FROM blocks WHERE series_id = chosen.value
                                ORDER BY start_ms DESC LIMIT 1 OFFSET ?4), -9223372036854775808)
LEFT JOIN payloads AS p ON p.id = b.payload_id AND (NOT ?5 OR b.has_metadata)
