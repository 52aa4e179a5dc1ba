//! Configuration files: where in the text a key stands, and errors that say so.
//!
//! An error is one line, `FILE:LINE:COLUMN: what is wrong; what would be right`, in the words of the file and not in those
//! of the program's types. The schema that goes with the type gives the words; it is made only when there is an error to
//! explain.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::{self, KeyError, Problem};

/// A TOML file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    name: String,
    text: String,
}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file as the user named it.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A file that cannot be had, or does not say what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{at}: {message}")]
    Wrong {
        /// Where.
        at: Location,
        /// What is wrong; what would be right.
        message: String,
    },
}

impl Document {
    /// A text, and what messages call the file it is from.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    /// Reads a file, or standard input where the path is `-`.
    ///
    /// # Errors
    ///
    /// [`DocumentError::Read`]; a file that is not text is one that cannot be read.
    pub fn read(path: &Path) -> Result<Self, DocumentError> {
        let (name, text) = if path == Path::new("-") {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text).map(|_| text);
            ("standard input".to_owned(), read)
        } else {
            (path.display().to_string(), std::fs::read_to_string(path))
        };
        match text {
            Ok(text) => Ok(Self { name, text }),
            Err(source) => Err(DocumentError::Read { file: name, source }),
        }
    }

    /// What messages call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text as a `T`.
    ///
    /// # Errors
    ///
    /// [`DocumentError::Wrong`].
    pub fn parse<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, DocumentError> {
        toml::from_str(&self.text).map_err(|error| self.explain::<T>(&error))
    }

    /// The text as a table, whatever it says.
    ///
    /// # Errors
    ///
    /// [`DocumentError::Wrong`], where it is not TOML.
    pub fn table(&self) -> Result<toml::Table, DocumentError> {
        toml::from_str(&self.text).map_err(|error| self.parse_error(&error))
    }

    /// An error about a key, such as `msr.device[0].msr` with lists counted from 0. It is where that key is, or the
    /// innermost of its tables that the text has.
    pub fn error(&self, key: &str, message: impl fmt::Display) -> DocumentError {
        DocumentError::Wrong {
            at: self.locate(key),
            message: message.to_string(),
        }
    }

    /// Where a key's value is, or the innermost of its tables that the text has.
    pub fn locate(&self, key: &str) -> Location {
        self.place(self.find(key, false).0)
    }

    /// Whether the text has the key.
    pub fn has(&self, key: &str) -> bool {
        self.find(key, false).1
    }

    fn key_error(&self, error: &KeyError) -> DocumentError {
        let at_key = matches!(error.problem, Problem::Unknown { .. });
        DocumentError::Wrong {
            at: self.place(self.find(&error.key, at_key).0),
            message: error.problem.to_string(),
        }
    }

    /// What serde refuses, in the words of the schema where it has some.
    fn explain<T: JsonSchema>(&self, error: &toml::de::Error) -> DocumentError {
        let table: toml::Table = match toml::from_str(&self.text) {
            Ok(table) => table,
            Err(error) => return self.parse_error(&error),
        };
        let schema = schemars::schema_for!(T).to_value();
        match keys::check(&schema, &table) {
            Err(error) => self.key_error(&error),
            Ok(()) => self.parse_error(error),
        }
    }

    fn parse_error(&self, error: &toml::de::Error) -> DocumentError {
        let start = error.span().map_or(0, |span| span.start);
        DocumentError::Wrong {
            at: self.place(start),
            message: error.message().trim().replace('\n', "; "),
        }
    }

    /// Where in the text the key or its value starts, or the innermost of its tables that there is; and whether it is the key
    /// itself.
    fn find(&self, key: &str, at_key: bool) -> (usize, bool) {
        let Ok(root) = DeTable::parse(&self.text) else {
            return (0, false);
        };
        let mut at = 0;
        let mut here = Here::Table(root.get_ref());
        for (number, step) in steps(key).into_iter().enumerate() {
            let Some((name, value)) = here.step(step) else {
                return (at, false);
            };
            let is_last = number + 1 == steps(key).len();
            at = match name {
                Some(name) if at_key && is_last => name.start,
                _ => value.span().start,
            };
            here = Here::Value(value.get_ref());
        }
        (at, true)
    }

    fn place(&self, offset: usize) -> Location {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Location {
            file: self.name.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Where a walk through a document has come to.
#[derive(Clone, Copy)]
enum Here<'a, 'text> {
    Table(&'a DeTable<'text>),
    Value(&'a DeValue<'text>),
}

/// A step of a key's path.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a, 'text> Here<'a, 'text> {
    /// The value one step further, and where its key is if it has one.
    fn step(self, step: Step<'_>) -> Option<(Option<Range<usize>>, &'a Spanned<DeValue<'text>>)> {
        match (self, step) {
            (Self::Table(table), Step::Key(key))
            | (Self::Value(DeValue::Table(table)), Step::Key(key)) => {
                let (name, value) = table
                    .iter()
                    .find(|(name, _)| name.get_ref().as_ref() == key)?;
                Some((Some(name.span()), value))
            }
            (Self::Value(DeValue::Array(values)), Step::Index(index)) => {
                Some((None, values.get(index)?))
            }
            _ => None,
        }
    }
}

/// The steps of a path such as `msr.device[0].msr`.
fn steps(key: &str) -> Vec<Step<'_>> {
    let parts = key.split('.').filter(|part| !part.is_empty());
    parts
        .flat_map(|part| {
            let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
            let indices = indices
                .split(['[', ']'])
                .filter_map(|index| index.parse().ok())
                .map(Step::Index);
            let name = (!name.is_empty()).then_some(Step::Key(name));
            name.into_iter().chain(indices).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests;
