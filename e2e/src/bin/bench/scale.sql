-- Payments :first to :last of :total, as a year of fifty merchants leaves them: one merchant has half of all. Most have ended; of the
-- newest 2 % many are still open, and of the others one in a thousand, as after a chain's halt. :record is an event's record, in hex.

INSERT INTO payments (id, merchant_id, external_id, metadata, chain_id, chain, token, token_address, decimals, address, xpub,
        address_index, amount, amount_received, status, confirmations_required, sequence, created_at, expires_at, updated_at,
        deposit_address, received, in_time, confirmed, confirmed_in_time, settled_by, settled_block, settled_number, settled_at)
    SELECT lpad(to_hex(i), 32, '0')::uuid, m.id, CASE WHEN i % 5 > 0 THEN 'order-' || i END, '{"cart": 7}',
        (ARRAY[31337, 31337, 1, 137, 8453, 42161])[1 + hash % 6],
        (ARRAY['anvil', 'anvil', 'one', 'two', 'three', 'four'])[1 + hash % 6],
        (ARRAY[NULL, 'USDC', 'USDC', 'DAI'])[1 + hash / 6 % 4],
        (ARRAY[NULL, '\x11', '\x11', '\x12']::bytea[])[1 + hash / 6 % 4] || decode(repeat('11', 19), 'hex'),
        6, decode(md5(i::text) || substr(md5('x' || i), 1, 8), 'hex'), 'scale', i, 1000, paid, status, 3, 3,
        now - (:total - i) * 31536000 / :total, now - (:total - i) * 31536000 / :total + 3600, now,
        CASE WHEN i % 20 = 10 THEN lpad(to_hex(i % 1000), 32, '0')::uuid END, paid, paid, paid, paid,
        CASE WHEN status = 'settled' THEN sha256(int8send(i)) END, CASE WHEN status = 'settled' THEN sha256(int8send(i / 100)) END,
        CASE WHEN status = 'settled' THEN i / 100 END, CASE WHEN status = 'settled' THEN now END
    FROM (
        SELECT i, hash, now, status, CASE WHEN status IN ('detected', 'confirmed', 'settled') THEN 1000 ELSE 0 END AS paid
        FROM (
            SELECT i, abs(hashint8(i)) AS hash, extract(epoch FROM now())::bigint AS now,
                CASE WHEN i % 1000 = 0 THEN 'detected'
                    WHEN i > :total * 0.98 AND i % 3 > 0 THEN 'pending'
                    ELSE (ARRAY['confirmed', 'confirmed', 'confirmed', 'settled', 'expired', 'expired', 'cancelled'])[1 + i % 7]
                END AS status
            FROM generate_series(:first::bigint, :last::bigint) AS i) AS one
        ) AS p
        JOIN merchants m ON m.name = 'scale ' || CASE WHEN i % 2 = 0 THEN 1 ELSE 2 + i / 2 % 49 END;

INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
        transaction_index, token_address, sender, amount, credited, listed, chain, token, decimals)
    SELECT chain_id, sha256(int8send(address_index / 100)), sha256(int8send(-address_index)), 'log', 0, id, address_index / 100,
        created_at + 60, 0, token_address, substr(address, 1, 19) || '\x00', 1000, true, true, chain, token, decimals
    FROM payments WHERE xpub = 'scale' AND address_index BETWEEN :first AND :last AND amount_received > 0;

INSERT INTO payment_parts (payment_id, chain_id, block_hash, block_number, block_timestamp, transfers, credited, due, confirmed)
    SELECT payment_id, chain_id, block_hash, block_number, block_timestamp, 1, 1000, block_number + 2,
        CASE WHEN block_timestamp < extract(epoch FROM now()) - 3600 THEN 1000 ELSE 0 END
    FROM transfers WHERE payment_id BETWEEN lpad(to_hex(:first), 32, '0')::uuid AND lpad(to_hex(:last), 32, '0')::uuid;

INSERT INTO payment_events (payment_id, sequence, recorded_at, record)
    SELECT id, n, to_timestamp(created_at + n * 60), decode(':record', 'hex')
    FROM payments CROSS JOIN generate_series(1, 3) AS n
    WHERE xpub = 'scale' AND address_index BETWEEN :first AND :last AND (n = 1 OR status <> 'pending') AND (n < 3 OR amount_received > 0);

-- Every fourth is told to a webhook of the large merchant, which has failed at times.
INSERT INTO webhook_messages (event_id, merchant_id, body, created_at)
    SELECT 'evt_scale_' || p.address_index, p.merchant_id, '{"type": "payment.confirmed"}', to_timestamp(p.created_at)
    FROM payments p JOIN webhook_endpoints e ON e.merchant_id = p.merchant_id
    WHERE p.xpub = 'scale' AND p.address_index BETWEEN :first AND :last AND p.address_index % 4 = 0
    ON CONFLICT DO NOTHING;
INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state, attempts, created_at, delivered_at)
    SELECT e.id, 'evt_scale_' || p.address_index, 'payment.confirmed', p.id, 3,
        CASE WHEN p.address_index % 10000 = 0 THEN 'failed' ELSE 'delivered' END, 1, to_timestamp(p.created_at),
        to_timestamp(p.created_at + 1)
    FROM payments p JOIN webhook_endpoints e ON e.merchant_id = p.merchant_id
    WHERE p.xpub = 'scale' AND p.address_index BETWEEN :first AND :last AND p.address_index % 4 = 0;
