-- What every question reads first, in the same snapshot: the state, journal rows and series that
-- this handle has not seen. Columns: part, four integers (of a series its id and its two names),
-- five reals, flag, blob.
SELECT 0 AS part, sealed_id AS n1, sealing_id AS n2, sealing_next AS n3, version AS n4,
       NULL AS r1, NULL AS r2, NULL AS r3, NULL AS r4, NULL AS r5, NULL AS flag, NULL AS bytes
FROM state
UNION ALL
SELECT 1, id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, payload
FROM journal WHERE id > ?1
UNION ALL
SELECT 2, id, server_id, metric_type, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM series WHERE id > ?2
