//! Clients of the control socket that send anything, in pieces of any length.
//!
//! Each line that they get is an answer of JSON-RPC, however much they send before they read. The next client is served.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use event_manager::{EventManager, SubscriberOps};
use msr_vmm::control_socket::{ControlSocket, Error, Handler, Method, Response, Server};
use serde_json::Value;

/// Rounds of the event loop that are enough for whatever fits into an input.
const ROUNDS: usize = 4096;

struct Accepting;

impl Handler for Accepting {
    fn call(&mut self, method: Method) -> Result<Value, Error> {
        match method {
            // Large, and an error.
            Method::Stats => Ok("x".repeat(1 << 18).into()),
            Method::Stop => Err(Error::vm("not here")),
            other => Ok(serde_json::to_value(other).expect("a method is JSON")),
        }
    }
}

struct Service {
    path: PathBuf,
    events: EventManager<Server<Accepting>>,
}

thread_local! {
    static SERVICE: std::cell::RefCell<Service> = {
        let thread = std::thread::current().id();
        let name = format!("fuzz-control.{}.{thread:?}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let socket = ControlSocket::bind(&path).expect("a socket");
        let mut events = EventManager::new().expect("an event loop");
        events.add_subscriber(Server::new(socket, Accepting));
        Service { path, events }.into()
    };
}

/// The first byte of `data` says how long the pieces are, the second how often the client reads.
pub fn run(data: &[u8]) {
    let [length, reads, data @ ..] = data else {
        return;
    };
    SERVICE.with_borrow_mut(|service| {
        service.talk(data, usize::from(*length) * 16 + 1, usize::from(*reads));
        let status = b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"status\"}\n";
        let answers = service.talk(status, status.len(), 1);
        let answers: Vec<Response> = answers.lines().map(response).collect();
        assert!(
            matches!(&answers[..], [Response { error: None, .. }]),
            "{answers:?}"
        );
    });
}

fn response(line: &str) -> Response {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

impl Service {
    fn turn(&mut self) {
        let _ = self.events.run_with_timeout(0);
    }

    /// Sends `data`, ends the sending and gives what was answered, whole lines of it.
    fn talk(&mut self, data: &[u8], length: usize, reads: usize) -> String {
        let mut client = UnixStream::connect(&self.path).expect("the socket is there");
        client.set_nonblocking(true).expect("a socket");
        let mut answers = Vec::new();
        for (number, piece) in data.chunks(length).enumerate() {
            // Refused where the buffer is full and nobody reads, and where the server has closed.
            let _ = client.write(piece);
            self.turn();
            if reads > 0 && number % reads == 0 {
                drain(&mut client, &mut answers);
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Write);
        for _ in 0..ROUNDS {
            self.turn();
            // One that waits for the guest's end is not answered before.
            if drain(&mut client, &mut answers) {
                break;
            }
        }
        drop(client);
        self.turn();
        let end = answers.iter().rposition(|byte| *byte == b'\n');
        answers.truncate(end.map_or(0, |end| end + 1));
        let answers = String::from_utf8(answers).expect("answers are UTF-8");
        answers.lines().for_each(|line| drop(response(line)));
        answers
    }
}

/// Reads what is there, and says whether that is all there will be.
fn drain(client: &mut UnixStream, answers: &mut Vec<u8>) -> bool {
    let mut piece = [0; 4096];
    loop {
        match client.read(&mut piece) {
            Ok(0) => return true,
            Ok(length) => answers.extend_from_slice(&piece[..length]),
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}
