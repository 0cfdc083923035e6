package invoice_platform;

import io.delta.storage.HDFSLogStore;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;

/**
 * Delta's own store of logs on a local disk, which looks only at the files that it is asked for.
 *
 * <p>Delta asks for the names from a version on, a dozen times a stream. HDFSLogStore looks up size and time of every file in the
 * folder first, five system calls each, and then passes over those of older versions.
 */
public class LocalLogStore extends HDFSLogStore {
    public LocalLogStore(Configuration hadoopConf) {
        super(hadoopConf);
    }

    @Override
    public Iterator<FileStatus> listFrom(Path path, Configuration hadoopConf) throws IOException {
        Path folder = path.getParent();
        FileSystem fs = folder.getFileSystem(hadoopConf);
        File log = new File(folder.toUri().getPath());
        String[] names = log.list();
        if (names == null) { // Java does not say why; a log that is not there means a table that is not there
            throw log.exists() ? new IOException(log + " cannot be listed") : new FileNotFoundException(log + " is not there");
        }
        Arrays.sort(names);
        List<FileStatus> found = new ArrayList<>();
        for (String name : names) {
            boolean checksum = name.startsWith(".") && name.endsWith(".crc"); // Hadoop's, which it lists nowhere
            if (name.compareTo(path.getName()) >= 0 && !checksum) {
                try {
                    found.add(fs.getFileStatus(new Path(folder, new Path(null, null, name)))); // a name may have a colon
                } catch (FileNotFoundException deletedMeanwhile) {
                    continue;
                }
            }
        }
        return found.iterator();
    }
}
