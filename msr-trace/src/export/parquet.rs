//! A trace as Apache Parquet, a row a record; docs/trace-parquet.md describes the columns.

use std::fs::File;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::row::Row;

/// The columns.
pub const SCHEMA: &str = "
message msr_trace {
  REQUIRED INT64 time_ns (INTEGER(64,false));
  REQUIRED INT64 wall_time (TIMESTAMP(NANOS,true));
  REQUIRED INT32 vcpu (INTEGER(32,false));
  REQUIRED BYTE_ARRAY kind (UTF8);
  REQUIRED INT32 msr (INTEGER(32,false));
  OPTIONAL BYTE_ARRAY name (UTF8);
  OPTIONAL INT64 value (INTEGER(64,false));
  OPTIONAL BYTE_ARRAY fields (UTF8);
  OPTIONAL INT64 rip (INTEGER(64,false));
  OPTIONAL BYTE_ARRAY caller (UTF8);
  OPTIONAL BYTE_ARRAY reason (UTF8);
  REQUIRED BOOLEAN fault;
  REQUIRED BOOLEAN injected;
  REQUIRED BYTE_ARRAY answerer (UTF8);
  REQUIRED BYTE_ARRAY rule (UTF8);
}";

/// How many rows are written together; as many are kept in memory.
const GROUP: usize = 128 << 10;

/// Writes a trace's rows.
pub struct Parquet {
    writer: SerializedFileWriter<File>,
    wall_time: u64,
    rows: usize,
    time: Vec<i64>,
    wall: Vec<i64>,
    vcpu: Vec<i32>,
    kind: Vec<ByteArray>,
    msr: Vec<i32>,
    name: Column<ByteArray>,
    value: Column<i64>,
    fields: Column<ByteArray>,
    rip: Column<i64>,
    caller: Column<ByteArray>,
    reason: Column<ByteArray>,
    fault: Vec<bool>,
    injected: Vec<bool>,
    answerer: Vec<ByteArray>,
    rule: Vec<ByteArray>,
}

/// An optional column: the values that are there, and which are.
struct Column<T> {
    values: Vec<T>,
    there: Vec<i16>,
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            there: Vec::new(),
        }
    }
}

impl<T> Column<T> {
    fn push(&mut self, value: Option<T>) {
        self.there.push(i16::from(value.is_some()));
        self.values.extend(value);
    }

    fn clear(&mut self) {
        self.values.clear();
        self.there.clear();
    }
}

impl Parquet {
    /// Begins the file. `wall_time` is when the recording began, in nanoseconds since 1970.
    ///
    /// # Errors
    ///
    /// [`ParquetError`], here as below, which for the most part is the file's.
    pub fn new(file: File, wall_time: u64) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("msr-trace ", env!("CARGO_PKG_VERSION")).to_owned());
        Ok(Self {
            writer: SerializedFileWriter::new(file, schema, Arc::new(properties.build()))?,
            wall_time,
            rows: 0,
            time: Vec::new(),
            wall: Vec::new(),
            vcpu: Vec::new(),
            kind: Vec::new(),
            msr: Vec::new(),
            name: Column::default(),
            value: Column::default(),
            fields: Column::default(),
            rip: Column::default(),
            caller: Column::default(),
            reason: Column::default(),
            fault: Vec::new(),
            injected: Vec::new(),
            answerer: Vec::new(),
            rule: Vec::new(),
        })
    }

    /// Adds a row.
    pub fn row(&mut self, row: &Row<'_>) -> Result<(), ParquetError> {
        // Parquet's unsigned integers are the signed ones' bits.
        self.time.push(row.time_ns as i64);
        self.wall
            .push(self.wall_time.saturating_add(row.time_ns) as i64);
        self.vcpu.push(row.vcpu.into());
        self.kind.push(text(&row.kind.to_string()));
        self.msr.push(row.msr as i32);
        self.name.push(row.name.map(text));
        self.value.push(row.value.map(|value| value as i64));
        self.fields
            .push(row.fields.map(|fields| text(&fields.to_string())));
        self.rip.push(row.rip.map(|rip| rip as i64));
        self.caller.push(row.caller.map(text));
        self.reason
            .push(row.reason.map(|reason| text(&reason.to_string())));
        self.fault.push(row.fault);
        self.injected.push(row.injected);
        self.answerer.push(text(row.answerer));
        self.rule.push(text(row.rule));
        self.rows += 1;
        if self.rows == GROUP {
            self.group()
        } else {
            Ok(())
        }
    }

    /// Writes what is left, and the file's end.
    pub fn finish(mut self) -> Result<(), ParquetError> {
        if self.rows > 0 {
            self.group()?;
        }
        self.writer.close().map(drop)
    }

    fn group(&mut self) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        macro_rules! write {
            ($kind:ty, $values:expr, $there:expr) => {{
                let Some(mut column) = group.next_column()? else {
                    return Err(ParquetError::General(
                        "the schema has fewer columns".to_owned(),
                    ));
                };
                column.typed::<$kind>().write_batch($values, $there, None)?;
                column.close()?;
            }};
        }
        write!(Int64Type, &self.time, None);
        write!(Int64Type, &self.wall, None);
        write!(Int32Type, &self.vcpu, None);
        write!(ByteArrayType, &self.kind, None);
        write!(Int32Type, &self.msr, None);
        write!(ByteArrayType, &self.name.values, Some(&self.name.there));
        write!(Int64Type, &self.value.values, Some(&self.value.there));
        write!(ByteArrayType, &self.fields.values, Some(&self.fields.there));
        write!(Int64Type, &self.rip.values, Some(&self.rip.there));
        write!(ByteArrayType, &self.caller.values, Some(&self.caller.there));
        write!(ByteArrayType, &self.reason.values, Some(&self.reason.there));
        write!(BoolType, &self.fault, None);
        write!(BoolType, &self.injected, None);
        write!(ByteArrayType, &self.answerer, None);
        write!(ByteArrayType, &self.rule, None);
        group.close()?;
        self.rows = 0;
        for column in [&mut self.time, &mut self.wall] {
            column.clear();
        }
        for column in [&mut self.vcpu, &mut self.msr] {
            column.clear();
        }
        for column in [&mut self.kind, &mut self.answerer, &mut self.rule] {
            column.clear();
        }
        for column in [
            &mut self.name,
            &mut self.fields,
            &mut self.caller,
            &mut self.reason,
        ] {
            column.clear();
        }
        self.value.clear();
        self.rip.clear();
        self.fault.clear();
        self.injected.clear();
        Ok(())
    }
}

fn text(text: &str) -> ByteArray {
    text.as_bytes().to_vec().into()
}
