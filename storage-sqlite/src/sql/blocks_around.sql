-- The blocks that new samples may touch: for each [series, first, last] of the JSON
-- array ?1 those that start between first and last, and the one before.
SELECT b.series_id, b.start_ms, b.end_ms, b.count, b.payload_id, coalesce(length(p.bytes), 0)
FROM json_each(?1) AS chosen
CROSS JOIN blocks AS b ON b.series_id = json_extract(chosen.value, '$[0]')
    AND b.start_ms <= json_extract(chosen.value, '$[2]')
    AND b.start_ms >= coalesce((SELECT max(start_ms) FROM blocks
                                WHERE series_id = json_extract(chosen.value, '$[0]')
                                AND start_ms <= json_extract(chosen.value, '$[1]')),
                               json_extract(chosen.value, '$[1]'))
LEFT JOIN payloads AS p ON p.id = b.payload_id
ORDER BY b.series_id, b.start_ms
