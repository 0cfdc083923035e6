package invoice_platform;

import java.io.ByteArrayOutputStream;
import java.io.Serializable;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.spark.sql.catalyst.InternalRow;
import org.apache.spark.sql.catalyst.analysis.NoSuchFunctionException;
import org.apache.spark.sql.catalyst.expressions.GenericInternalRow;
import org.apache.spark.sql.catalyst.util.GenericArrayData;
import org.apache.spark.sql.connector.catalog.FunctionCatalog;
import org.apache.spark.sql.connector.catalog.Identifier;
import org.apache.spark.sql.connector.catalog.functions.BoundFunction;
import org.apache.spark.sql.connector.catalog.functions.ScalarFunction;
import org.apache.spark.sql.connector.catalog.functions.UnboundFunction;
import org.apache.spark.sql.types.ArrayType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.Decimal;
import org.apache.spark.sql.types.DecimalType;
import org.apache.spark.sql.types.StructField;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.sql.util.CaseInsensitiveStringMap;
import org.apache.spark.unsafe.types.UTF8String;

/**
 * A catalog of one SQL function, {@code plain_record(line, shape)}: the record of a line of JSON, or null.
 *
 * <p>{@code shape} is a null of the struct that a record is. A line gets its record when it is one object of the declared fields
 * alone, each at most once, in any order, of its type to the last digit, and none that is NOT NULL missing; a decimal field
 * with the comment {@code rounded} may have more decimals. What is written in any other way gets null, right or wrong, and is for
 * others to read and to name: a number with an exponent, one that may not fit, a key with an escape.
 */
public class PlainRecords implements FunctionCatalog {
    private static final String FUNCTION = "plain_record";
    private String name;

    @Override
    public void initialize(String name, CaseInsensitiveStringMap options) {
        this.name = name;
    }

    @Override
    public String name() {
        return name;
    }

    @Override
    public Identifier[] listFunctions(String[] namespace) {
        return new Identifier[] {Identifier.of(new String[0], FUNCTION)};
    }

    @Override
    public UnboundFunction loadFunction(Identifier function) throws NoSuchFunctionException {
        if (function.namespace().length > 0 || !function.name().equals(FUNCTION)) {
            throw new NoSuchFunctionException(function);
        }
        return new Unbound();
    }

    private static class Unbound implements UnboundFunction {
        @Override
        public BoundFunction bind(StructType arguments) {
            if (arguments.length() != 2 || !(arguments.apply(1).dataType() instanceof StructType)) {
                throw new UnsupportedOperationException(description());
            }
            return new PlainRecord((StructType) arguments.apply(1).dataType());
        }

        @Override
        public String name() {
            return FUNCTION;
        }

        @Override
        public String description() {
            return FUNCTION + "(line STRING, shape STRUCT): the record of a line of JSON that is written just as declared, or null";
        }
    }

    /** The function for one shape. */
    public static class PlainRecord implements ScalarFunction<InternalRow> {
        private final StructType shape;
        private final Field[] fields;

        PlainRecord(StructType shape) {
            this.shape = shape;
            this.fields = Field.all(shape);
        }

        @Override
        public DataType[] inputTypes() {
            return new DataType[] {DataTypes.StringType, shape};
        }

        @Override
        public DataType resultType() {
            return shape.asNullable();
        }

        @Override
        public String name() {
            return FUNCTION;
        }

        @Override
        public String canonicalName() {
            return "invoice_platform." + FUNCTION + "(string," + shape.json() + ")";
        }

        /** Stands in plans. */
        @Override
        public String toString() {
            return name();
        }

        /** Called by the code that Spark writes, by its name. */
        public InternalRow invoke(UTF8String line, InternalRow noShape) {
            return line == null ? null : new Line(line.getBytes()).record(fields);
        }
    }

    /** A declared field. */
    private static class Field implements Serializable {
        final byte[] name;
        final boolean required;
        final Kind kind;
        /** Digits that a number may have before the point, and those that are kept after it. */
        final int whole;
        final int decimals;
        final int precision;
        final boolean rounded;
        final Field[] fields;

        private Field(StructField declared) {
            DataType type = declared.dataType();
            name = declared.name().getBytes(StandardCharsets.UTF_8);
            required = !declared.nullable();
            rounded = declared.getComment().exists(comment -> comment.equals("rounded"));
            kind = Kind.of(type);
            DecimalType decimal = kind == Kind.DECIMAL ? (DecimalType) type : null;
            precision = decimal == null ? 0 : decimal.precision();
            decimals = decimal == null ? 0 : decimal.scale();
            whole = switch (kind) {
                case INT -> 9;
                case BIGINT -> 18;
                // A rounded one may gain a digit.
                case DECIMAL -> Math.min(precision, 18) - decimals - (rounded ? 1 : 0);
                default -> 0;
            };
            fields = switch (kind) {
                case STRUCT -> all((StructType) type);
                case ARRAY -> all((StructType) ((ArrayType) type).elementType());
                default -> null;
            };
        }

        static Field[] all(StructType shape) {
            if (shape.length() > 64) {
                throw new UnsupportedOperationException(FUNCTION + ": over 64 fields in one object");
            }
            return Arrays.stream(shape.fields()).map(Field::new).toArray(Field[]::new);
        }
    }

    private enum Kind {
        STRING, INT, BIGINT, DECIMAL, STRUCT, ARRAY;

        static Kind of(DataType type) {
            if (type instanceof DecimalType) {
                return DECIMAL;
            }
            if (type instanceof StructType) {
                return STRUCT;
            }
            if (type instanceof ArrayType array && array.elementType() instanceof StructType) {
                return ARRAY;
            }
            if (type.equals(DataTypes.StringType)) {
                return STRING;
            }
            if (type.equals(DataTypes.IntegerType)) {
                return INT;
            }
            if (type.equals(DataTypes.LongType)) {
                return BIGINT;
            }
            throw new UnsupportedOperationException(FUNCTION + ": no field may be " + type.sql());
        }
    }

    /** One line and how far it is read. What reads a value gives null where it is not plain. */
    private static class Line {
        private static final Object NULL = new Object();
        private final byte[] text;
        private int at;
        private boolean ascii = true;

        Line(byte[] text) {
            this.text = text;
        }

        InternalRow record(Field[] fields) {
            skipBlanks();
            InternalRow record = object(fields);
            skipBlanks();
            if (record == null || at != text.length) {
                return null;
            }
            return ascii || UTF8String.fromBytes(text).isValid() ? record : null;
        }

        private InternalRow object(Field[] fields) {
            if (!take('{')) {
                return null;
            }
            Object[] values = new Object[fields.length];
            long seen = 0;
            int next = 0;
            if (!take('}')) {
                do {
                    next = key(fields, next);
                    if (next < 0 || (seen & 1L << next) != 0 || !take(':')) {
                        return null;
                    }
                    Object value = value(fields[next]);
                    if (value == null) {
                        return null;
                    }
                    if (value != NULL) {
                        values[next] = value;
                    }
                    seen |= 1L << next++;
                } while (take(','));
                if (!take('}')) {
                    return null;
                }
            }
            for (int i = 0; i < fields.length; i++) {
                if (fields[i].required && values[i] == null) {
                    return null;
                }
            }
            return new GenericInternalRow(values);
        }

        private GenericArrayData array(Field[] fields) {
            if (!take('[')) {
                return null;
            }
            Object[] items = new Object[8];
            int size = 0;
            if (!take(']')) {
                do {
                    if (size == items.length) {
                        items = Arrays.copyOf(items, 2 * size);
                    }
                    if ((items[size++] = object(fields)) == null) {
                        return null;
                    }
                } while (take(','));
                if (!take(']')) {
                    return null;
                }
            }
            return new GenericArrayData(Arrays.copyOf(items, size));
        }

        /** Which field's key stands here; most often that of the one after the last. */
        private int key(Field[] fields, int likely) {
            if (!take('"')) {
                return -1;
            }
            for (int i = 0; i < fields.length; i++) {
                int which = (likely + i) % fields.length;
                byte[] name = fields[which].name;
                int end = at + name.length;
                if (end < text.length && text[end] == '"' && Arrays.equals(text, at, end, name, 0, name.length)) {
                    at = end + 1;
                    skipBlanks();
                    return which;
                }
            }
            return -1;
        }

        private Object value(Field field) {
            if (at < text.length && text[at] == 'n') {
                return !field.required && word("null") ? NULL : null;
            }
            return switch (field.kind) {
                case STRING -> string();
                case STRUCT -> object(field.fields);
                case ARRAY -> array(field.fields);
                default -> number(field);
            };
        }

        private Object number(Field field) {
            boolean negative = at < text.length && text[at] == '-';
            if (negative) {
                at++;
            }
            int start = at;
            long digits = 0;
            while (isDigit()) {
                if (at - start >= field.whole) { // none at all where decimals leave no room for them
                    return null;
                }
                digits = 10 * digits + (text[at++] - '0');
            }
            if (at == start || at - start > 1 && text[start] == '0') {
                return null;
            }
            if (field.kind == Kind.DECIMAL) {
                int missing = field.decimals;
                if (at < text.length && text[at] == '.') {
                    int point = at++;
                    for (; isDigit(); at++) {
                        int digit = text[at] - '0';
                        int past = at - point - field.decimals;
                        if (past <= 0) {
                            digits = 10 * digits + digit;
                            missing--;
                        } else if (field.rounded) {
                            digits += past == 1 && digit >= 5 ? 1 : 0; // half up, as Spark does
                        } else if (digit != 0) {
                            return null;
                        }
                    }
                    if (at == point + 1) {
                        return null;
                    }
                }
                for (; missing > 0; missing--) {
                    digits *= 10;
                }
            }
            skipBlanks();
            long value = negative ? -digits : digits;
            return switch (field.kind) {
                case INT -> (int) value;
                case BIGINT -> value;
                default -> Decimal.createUnsafe(value, field.precision, field.decimals);
            };
        }

        private UTF8String string() {
            if (at == text.length || text[at++] != '"') {
                return null;
            }
            for (int start = at; at < text.length; at++) {
                byte c = text[at];
                if (c == '"') {
                    UTF8String value = UTF8String.fromBytes(text, start, at - start);
                    take('"');
                    return value;
                }
                if (c == '\\') {
                    return escaped(start);
                }
                if (c < ' ') {
                    if (c >= 0) {
                        return null;
                    }
                    ascii = false;
                }
            }
            return null;
        }

        /** A string that has escapes, from the first of them on. */
        private UTF8String escaped(int start) {
            ByteArrayOutputStream value = new ByteArrayOutputStream();
            value.write(text, start, at - start);
            while (at < text.length && text[at] != '"') {
                byte c = text[at++];
                if (c == '\\') {
                    int character = escape();
                    if (character < 0) {
                        return null;
                    }
                    value.writeBytes(Character.toString(character).getBytes(StandardCharsets.UTF_8));
                } else if (0 <= c && c < ' ') {
                    return null;
                } else {
                    ascii &= c >= 0;
                    value.write(c);
                }
            }
            if (!take('"')) {
                return null;
            }
            return UTF8String.fromBytes(value.toByteArray());
        }

        /** The character that an escape stands for, after its backslash, or -1. */
        private int escape() {
            byte c = at < text.length ? text[at++] : 0;
            return switch (c) {
                case '"', '\\', '/' -> c;
                case 'b' -> '\b';
                case 'f' -> '\f';
                case 'n' -> '\n';
                case 'r' -> '\r';
                case 't' -> '\t';
                case 'u' -> character();
                default -> -1;
            };
        }

        /** A character by its number, after the u, or by those of its two surrogates; -1 for half of such a pair, which is none. */
        private int character() {
            int unit = unit();
            if (unit < 0 || !Character.isSurrogate((char) unit)) {
                return unit;
            }
            boolean another = at + 1 < text.length && text[at] == '\\' && text[at + 1] == 'u';
            at += 2;
            int low = another ? unit() : -1;
            boolean pair = low >= 0 && Character.isSurrogatePair((char) unit, (char) low);
            return pair ? Character.toCodePoint((char) unit, (char) low) : -1;
        }

        /** Four hexadecimal digits, or -1. */
        private int unit() {
            int unit = 0;
            for (int end = at + 4; at < end; at++) {
                int digit = at < text.length ? Character.digit(text[at] & 0xff, 16) : -1;
                if (digit < 0) {
                    return -1;
                }
                unit = 16 * unit + digit;
            }
            return unit;
        }

        private boolean isDigit() {
            return at < text.length && text[at] >= '0' && text[at] <= '9';
        }

        private boolean word(String word) {
            for (int i = 0; i < word.length(); i++, at++) {
                if (at == text.length || text[at] != word.charAt(i)) {
                    return false;
                }
            }
            skipBlanks();
            return true;
        }

        /** Go past a character and the blanks after it, if it stands here. */
        private boolean take(char c) {
            if (at == text.length || text[at] != c) {
                return false;
            }
            at++;
            skipBlanks();
            return true;
        }

        private void skipBlanks() {
            while (at < text.length && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r')) {
                at++;
            }
        }
    }
}
