//! The other end: `msr-vmm ctl`, and programs that use the library.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::method::Method;
use super::protocol::{Error, Id, Response};

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody is there.
    #[error("cannot connect to {}: {source}; `msr-vmm run --control PATH` makes the socket", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the VMM closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The answer is none.
    #[error("the VMM's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
    /// The VMM says no.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// A connection to a running VM.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    next: i64,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            next: 1,
        })
    }

    /// Asks for something and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn call(&mut self, method: &Method) -> Result<Value, ClientError> {
        let mut request = serde_json::to_value(method)?;
        request["jsonrpc"] = "2.0".into();
        request["id"] = self.next.into();
        self.next += 1;
        let line = format!("{request}\n");
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ClientError::Closed);
        }
        let response: Response = serde_json::from_str(&line)?;
        if let Some(error) = response.error {
            return Err(error.into());
        }
        debug_assert_eq!(response.id, Some(Id::Number(self.next - 1)));
        Ok(response.result.unwrap_or(Value::Null))
    }

    /// The same, with the answer as the type that the method gives.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn ask<T: DeserializeOwned>(&mut self, method: &Method) -> Result<T, ClientError> {
        Ok(serde_json::from_value(self.call(method)?)?)
    }
}
