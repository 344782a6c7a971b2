-- Blocks of the series ?3 (a JSON array of ids) that reach into [?4, ?5). Their payloads where they
-- are needed: everywhere (?6), where a block is cut by the range, where it lies in more than one
-- window ?7 wide (NULL for no windows), or where its sum is out of bounds.
UNION ALL
SELECT 3, b.series_id, b.start_ms, b.end_ms, b.count, b.min, b.max, b.sum, b.first, b.last,
       b.has_metadata, p.bytes
FROM json_each(?3) AS chosen
CROSS JOIN blocks AS b ON b.series_id = chosen.value
    AND b.start_ms < ?5
    AND b.start_ms >= coalesce((SELECT max(start_ms) FROM blocks
                                WHERE series_id = chosen.value AND start_ms <= ?4), ?4)
    AND b.end_ms >= ?4
LEFT JOIN payloads AS p ON p.id = b.payload_id AND (
    ?6 OR b.start_ms < ?4 OR b.end_ms >= ?5 OR abs(b.sum) > 1.7976931348623157e308
    OR b.start_ms - ((b.start_ms % ?7) + ?7) % ?7 <> b.end_ms - ((b.end_ms % ?7) + ?7) % ?7)
