import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams doing what tidemill and the native loop do, as well as we can make it: no
 * deserialisation beyond what the work needs, stores without timestamps, large fetches and batches.
 * Whoever knows how to make it faster is welcome to: every figure it is compared by comes from here.
 *
 * <p>The JVM's own flags are in {@code src/streams.rs}. It runs until it is killed.
 */
public final class Contender {
    /** What to do, as {@code name=value} arguments; all of them are needed. */
    private static final Set<String> ARGUMENTS = Set.of(
            "bootstrap", "application", "input", "output", "work", "guarantee", "threads", "cache", "rocksdb", "state",
            "tuning");

    private Contender() {}

    public static void main(String[] words) {
        Map<String, String> arguments = new TreeMap<>();
        for (String word : words) {
            String[] parts = word.split("=", 2);
            arguments.put(parts[0], parts.length == 2 ? parts[1] : "");
        }
        if (!arguments.keySet().equals(ARGUMENTS)) {
            throw new IllegalArgumentException("usage: Contender with name=value for each of " + ARGUMENTS);
        }
        KafkaStreams streams = new KafkaStreams(topology(arguments), new StreamsConfig(properties(arguments)));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(30))));
        streams.setGlobalStateRestoreListener(new Restores());
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            // A process that does nothing any more would be waited for.
            Runtime.getRuntime().halt(1);
            return StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
    }

    /** Says after each store how many seconds restoring has taken since the first one began. */
    private static final class Restores implements StateRestoreListener {
        private long began;

        @Override
        public synchronized void onRestoreStart(TopicPartition log, String store, long from, long to) {
            began = began == 0 ? System.nanoTime() : began;
        }

        @Override
        public void onBatchRestored(TopicPartition log, String store, long to, long records) {}

        @Override
        public synchronized void onRestoreEnd(TopicPartition log, String store, long records) {
            System.out.println((System.nanoTime() - began) / 1e9);
        }
    }

    private static Properties properties(Map<String, String> arguments) {
        Properties properties = new Properties();
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments.get("bootstrap"));
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments.get("application"));
        properties.put(StreamsConfig.STATE_DIR_CONFIG, arguments.get("state"));
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments.get("guarantee"));
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, arguments.get("threads"));
        properties.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, arguments.get("cache"));
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        // Also at least once: everybody reads the same records at the same time.
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.ISOLATION_LEVEL_CONFIG), "read_committed");
        if (arguments.get("rocksdb").equals("tuned")) {
            properties.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, TunedRocksDb.class);
        }
        if (arguments.get("tuning").equals("throughput")) {
            tune(properties);
        }
        return properties;
    }

    /** For throughput. Latency is measured with the defaults. */
    private static void tune(Properties properties) {
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, "100");
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), "5000");
        // More than a poll brings: else partitions are paused and resumed all the time.
        properties.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, "10000");
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.RECEIVE_BUFFER_CONFIG), "1048576");
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), "4194304");
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), "524288");
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), "134217728");
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.MAX_REQUEST_SIZE_CONFIG), "4194304");
    }

    private static Topology topology(Map<String, String> arguments) {
        StreamsBuilder builder = new StreamsBuilder();
        KStream<Bytes, byte[]> input =
                builder.stream(arguments.get("input"), Consumed.with(Serdes.Bytes(), Serdes.ByteArray()));
        boolean cached = !arguments.get("cache").equals("0");
        work(input, arguments.get("work"), cached)
                .to(arguments.get("output"), Produced.with(Serdes.Bytes(), Serdes.ByteArray()));
        return builder.build();
    }

    private static KStream<Bytes, byte[]> work(KStream<Bytes, byte[]> input, String work, boolean cached) {
        return switch (work) {
            case "map" -> input.mapValues(value -> value);
            case "filter" -> input.filter((key, value) -> lastOf(key.get()) == '0');
            case "json" -> input.mapValues(Order::totalled);
            case "count" -> input.groupByKey(Grouped.with(Serdes.Bytes(), Serdes.ByteArray()))
                    .count(counts(cached))
                    .toStream()
                    .mapValues(count -> Long.toString(count).getBytes(StandardCharsets.UTF_8));
            case "dedupe" -> input.process(new Dedupe(cached));
            default -> throw new IllegalArgumentException("no such work: " + work);
        };
    }

    private static byte lastOf(byte[] bytes) {
        return bytes[bytes.length - 1];
    }

    private static Materialized<Bytes, Long, KeyValueStore<Bytes, byte[]>> counts(boolean cached) {
        Materialized<Bytes, Long, KeyValueStore<Bytes, byte[]>> counts =
                Materialized.<Bytes, Long>as(Stores.persistentKeyValueStore("counts"))
                        .withKeySerde(Serdes.Bytes())
                        .withValueSerde(Serdes.Long());
        return cached ? counts.withCachingEnabled() : counts.withCachingDisabled();
    }

    /** Forwards a record whose key has not been seen. */
    private record Dedupe(boolean cached) implements ProcessorSupplier<Bytes, byte[], Bytes, byte[]> {
        private static final String SEEN = "seen";

        @Override
        public Processor<Bytes, byte[], Bytes, byte[]> get() {
            return new Processor<>() {
                private ProcessorContext<Bytes, byte[]> context;
                private KeyValueStore<Bytes, Long> seen;

                @Override
                public void init(ProcessorContext<Bytes, byte[]> context) {
                    this.context = context;
                    seen = context.getStateStore(SEEN);
                }

                @Override
                public void process(Record<Bytes, byte[]> record) {
                    if (seen.putIfAbsent(record.key(), record.timestamp()) == null) {
                        context.forward(record);
                    }
                }
            };
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            StoreBuilder<KeyValueStore<Bytes, Long>> builder = Stores.keyValueStoreBuilder(
                    Stores.persistentKeyValueStore(SEEN), Serdes.Bytes(), Serdes.Long());
            return Set.of(cached ? builder.withCachingEnabled() : builder.withCachingDisabled());
        }
    }
}
