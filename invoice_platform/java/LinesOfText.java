package invoice_platform;

import java.io.IOException;
import java.io.Serializable;
import java.util.Arrays;
import java.util.NoSuchElementException;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.io.compress.CompressionCodecFactory;
import org.apache.spark.broadcast.Broadcast;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.expressions.codegen.UnsafeRowWriter;
import org.apache.spark.sql.execution.datasources.PartitionedFile;
import org.apache.spark.sql.execution.datasources.text.TextFileFormat;
import org.apache.spark.sql.execution.datasources.text.TextOptions;
import org.apache.spark.sql.sources.Filter;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.util.SerializableConfiguration;
import scala.Function1;
import scala.collection.AbstractIterator;
import scala.collection.Iterator;
import scala.collection.immutable.Map;
import scala.collection.immutable.Seq;
import scala.runtime.AbstractFunction1;

/**
 * Spark's format {@code text}, which opens small files without much ado; used with the option {@code lineSep} "\n".
 *
 * <p>Spark reads each file through Hadoop's reader of lines, which copies all of Hadoop's settings for it: 0.3 ms a file, whatever is
 * in it. A small file that is not compressed is read here as a whole and cut into the same lines; any other is left to Spark.
 */
public class LinesOfText extends TextFileFormat {
    private static final long SMALL_BYTES = 1 << 20;
    private static final byte[] END = {'\n'};

    @Override
    public Function1<PartitionedFile, Iterator<InternalRow>> buildReader(
            SparkSession session,
            StructType dataSchema,
            StructType partitionSchema,
            StructType requiredSchema,
            Seq<Filter> filters,
            Map<String, String> options,
            Configuration conf) {
        Function1<PartitionedFile, Iterator<InternalRow>> sparks =
                super.buildReader(session, dataSchema, partitionSchema, requiredSchema, filters, options, conf);
        TextOptions of = new TextOptions(options);
        boolean lines = of.lineSeparatorInRead().exists(end -> Arrays.equals(end, END)) && !of.wholeText();
        return lines && requiredSchema.nonEmpty()
                ? new Reader(sparks, SerializableConfiguration.broadcast(session.sparkContext(), conf))
                : sparks;
    }

    private static class Reader extends AbstractFunction1<PartitionedFile, Iterator<InternalRow>> implements Serializable {
        private final Function1<PartitionedFile, Iterator<InternalRow>> sparks;
        private final Broadcast<SerializableConfiguration> conf;
        private transient CompressionCodecFactory codecs;

        Reader(Function1<PartitionedFile, Iterator<InternalRow>> sparks, Broadcast<SerializableConfiguration> conf) {
            this.sparks = sparks;
            this.conf = conf;
        }

        @Override
        public Iterator<InternalRow> apply(PartitionedFile file) {
            if (file.length() != file.fileSize() || file.fileSize() > SMALL_BYTES) {
                return sparks.apply(file);
            }
            Configuration settings = conf.value().value();
            if (codecs == null) {
                codecs = new CompressionCodecFactory(settings);
            }
            Path path = file.toPath();
            if (codecs.getCodec(path) != null) {
                return sparks.apply(file);
            }
            byte[] text = new byte[(int) file.fileSize()];
            try (FSDataInputStream input = path.getFileSystem(settings).open(path)) {
                input.readFully(text);
            } catch (IOException error) {
                return sparks.apply(file); // which says what is amiss
            }
            return new Lines(text);
        }
    }

    /** The lines of a file, each in the one row of this iterator, as Spark's readers do it. */
    private static class Lines extends AbstractIterator<InternalRow> {
        private final byte[] text;
        private final UnsafeRowWriter row = new UnsafeRowWriter(1);
        private int at;

        Lines(byte[] text) {
            this.text = text;
            // A byte order mark before a file is no part of it.
            boolean mark = text.length >= 3 && text[0] == (byte) 0xEF && text[1] == (byte) 0xBB && text[2] == (byte) 0xBF;
            this.at = mark ? 3 : 0;
        }

        @Override
        public boolean hasNext() {
            return at < text.length;
        }

        @Override
        public InternalRow next() {
            if (!hasNext()) {
                throw new NoSuchElementException();
            }
            int start = at;
            int end = at;
            while (end < text.length && text[end] != '\n') {
                end++;
            }
            at = end + 1;
            row.reset();
            row.write(0, text, start, end - start);
            return row.getRow();
        }
    }
}
