//! A client of the control socket that does not wait for ever.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is asked: a method with its parameters.
pub(crate) type Request = (&'static str, Value);

/// What became of a client's requests.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The results, by method.
    pub(crate) given: Vec<Request>,
    /// Requests that were refused, or that a connection broke over, with what was said.
    pub(crate) refused: Vec<(&'static str, String)>,
}

impl Answers {
    pub(crate) fn has(&self, method: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == method)
    }
}

/// Makes each request, on a new connection where the old one broke.
pub(crate) fn ask(socket: &Path, requests: &[Request], ended: &AtomicBool) -> Answers {
    let mut answers = Answers::default();
    let mut kept = None;
    for (method, params) in requests {
        let connection = match kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(socket, ended),
        };
        let answer = connection
            .and_then(|mut connection| Ok((connection.call(method, params)?, connection)));
        match answer {
            Ok((Ok(result), connection)) => {
                kept = Some(connection);
                answers.given.push((method, result));
            }
            Ok((Err(words), connection)) => {
                kept = Some(connection);
                answers.refused.push((method, words));
            }
            Err(what) => answers.refused.push((method, what)),
        }
        if ended.load(Ordering::Acquire) {
            break;
        }
    }
    answers
}

/// A connection to a VMM.
pub(crate) struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects as soon as the socket is there, if the VMM has not `ended` by then.
    pub(crate) fn open(socket: &Path, ended: &AtomicBool) -> Result<Self, String> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    let set = stream.set_read_timeout(Some(PATIENCE));
                    set.map_err(|error| error.to_string())?;
                    return Ok(Self(BufReader::new(stream)));
                }
                Err(_) if !ended.load(Ordering::Acquire) && begin.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(format!("cannot connect: {error}")),
            }
        }
    }

    /// Asks for something: what is given, or why it is refused. An error where there is no answer.
    pub(crate) fn call(
        &mut self,
        method: &str,
        params: &Value,
    ) -> Result<Result<Value, String>, String> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let line = format!("{request}\n");
        let written = self.0.get_mut().write_all(line.as_bytes());
        written.map_err(|error| format!("writing: {error}"))?;
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => return Err("the connection was closed".into()),
            Ok(_) => {}
            Err(error) => return Err(format!("reading: {error}")),
        }
        let answer: Value =
            serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}"))?;
        Ok(match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].to_string()),
        })
    }
}
