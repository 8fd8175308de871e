import ctrip.v1.PaymentEventOuterClass.PaymentEvent;
import ctrip.v1.PaymentStateOuterClass.PaymentState;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.function.BiConsumer;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteBufferDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads payment.events and payment.state to their ends with Kafka's own client, and prints a JSON object an event and one a
 * payment of the table that payment.state makes. KAFKA_BROKERS and TOPIC_PREFIX are the pipeline's.
 *
 * <p>The frame is taken off by hand; Confluent's KafkaProtobufDeserializer, from their own repository, does the same.
 */
public class Consume {
    interface Parser<T> {
        T parse(ByteBuffer bytes) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        read("payment.events", PaymentEvent::parseFrom, (key, event) ->
            System.out.printf("{\"topic\":\"payment.events\",\"id\":\"%s\",\"type\":\"%s\",%s}%n", event.getId(), event.getType(),
                payment(event.getPaymentId(), event.getSequence(), event.getStatus(), event.getAmount().toByteArray(),
                    event.getAmountReceived().toByteArray())));

        Map<String, PaymentState> table = new LinkedHashMap<>();
        read("payment.state", PaymentState::parseFrom, table::put);
        for (PaymentState state : table.values()) {
            System.out.printf("{\"topic\":\"payment.state\",%s}%n",
                payment(state.getPaymentId(), state.getSequence(), state.getStatus(), state.getAmount().toByteArray(),
                    state.getAmountReceived().toByteArray()));
        }
    }

    static <T> void read(String name, Parser<T> parser, BiConsumer<String, T> see) throws Exception {
        String topic = System.getenv().getOrDefault("TOPIC_PREFIX", "") + name;
        Properties settings = new Properties();
        settings.put("bootstrap.servers", System.getenv("KAFKA_BROKERS"));
        settings.put("isolation.level", "read_committed");
        // No group: it reads everything, each time. A service subscribes in a group and commits what it has worked off.
        settings.put("enable.auto.commit", "false");
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteBufferDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(partition -> new TopicPartition(topic, partition.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    see.accept(record.key(), parser.parse(unframed(record.value())));
                }
            }
        }
    }

    /** Behind the Confluent header: a zero byte, the schema's id (four bytes), and a zero for the schema's first message. */
    static ByteBuffer unframed(ByteBuffer value) {
        if (value.remaining() < 6 || value.get(0) != 0 || value.get(5) != 0) {
            throw new IllegalArgumentException("no record in the Confluent wire format");
        }
        return value.position(6);
    }

    /** Ids and words of our own, in which nothing needs to be escaped. Money is big-endian bytes, unsigned. */
    static String payment(String id, long sequence, String status, byte[] amount, byte[] received) {
        return String.format("\"payment_id\":\"%s\",\"sequence\":%d,\"status\":\"%s\",\"amount\":\"%s\",\"amount_received\":\"%s\"",
            id, sequence, status, new BigInteger(1, amount), new BigInteger(1, received));
    }
}
