//! Serves the clients from an event loop.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::Value;

use super::connection::{Connection, Line, MAX_LINE};
use super::listener::ControlSocket;
use super::method::Method;
use super::protocol::{Error, Id, Request, Response};
use super::results::WaitResult;

/// How many clients are served at a time; further ones wait.
pub const MAX_CLIENTS: usize = 128;

/// How many requests of one client can wait for the guest's end.
const MAX_WAITS: usize = 16;

/// What carries out the methods, but for `wait`.
pub trait Handler {
    /// Carries out a method and gives its result.
    ///
    /// # Errors
    ///
    /// [`Error`], which goes to the client.
    fn call(&mut self, method: Method) -> Result<Value, Error>;
}

/// The server: a subscriber of an event loop.
pub struct Server<H> {
    socket: ControlSocket,
    handler: H,
    clients: BTreeMap<RawFd, Connection>,
    refused: Option<String>,
}

/// The clients that wait for the guest's end.
pub struct Waiting {
    clients: Vec<Connection>,
    _socket: ControlSocket,
}

impl Waiting {
    /// Tells them how it ended, as far as they read it at once, and closes everything.
    pub fn tell(self, result: &WaitResult) {
        let value = serde_json::to_value(result).expect("strings alone");
        for mut client in self.clients {
            for id in std::mem::take(&mut client.waiting) {
                answer(&mut client, Some(id), Ok(value.clone()));
            }
            let _ = client.flush();
        }
    }
}

impl<H: Handler> Server<H> {
    /// Serves `socket` with `handler`.
    pub fn new(socket: ControlSocket, handler: H) -> Self {
        Self {
            socket,
            handler,
            clients: BTreeMap::new(),
            refused: None,
        }
    }

    /// Why no client will ever be served, if the event loop has not taken the socket. To be asked once it has been given
    /// the server.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Ends the service, but for those who wait for the guest's end.
    pub fn into_waiting(self) -> Waiting {
        let clients = self.clients.into_values();
        Waiting {
            clients: clients
                .filter(|client| !client.waiting.is_empty())
                .collect(),
            _socket: self.socket,
        }
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        while self.clients.len() < MAX_CLIENTS {
            let stream = match self.socket.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if error.kind() != ErrorKind::WouldBlock {
                        log::warn!("control socket: {error}");
                    }
                    return;
                }
            };
            let fd = stream.as_raw_fd();
            let watched = stream
                .set_nonblocking(true)
                .is_ok_and(|()| ops.add(Events::new_raw(fd, EventSet::IN)).is_ok());
            if watched {
                self.clients.insert(fd, Connection::new(stream));
            }
        }
        // The next ones wait until one of these goes.
        let _ = ops.remove(self.listening());
    }

    fn listening(&self) -> Events {
        Events::new(&self.socket.listener, EventSet::IN)
    }

    fn serve(&mut self, fd: RawFd, events: EventSet, ops: &mut EventOps<'_>) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        let mut alive = client.flush().is_ok();
        if alive && events.contains(EventSet::IN) && client.takes_input() {
            alive = client.fill().is_ok();
        }
        while alive {
            match client.next_line() {
                Line::Whole(line) => serve_line(client, &mut self.handler, &line),
                Line::TooLong => {
                    let message = format!("a line is longer than {MAX_LINE} bytes");
                    push(client, None, Err(Error::request(message)));
                    client.close();
                }
                Line::Partial => break,
            }
            alive = client.flush().is_ok();
        }
        let gone = events.intersects(EventSet::ERROR | EventSet::HANG_UP) && !client.has_output();
        if !alive || client.is_done() || gone {
            let full = self.clients.len() == MAX_CLIENTS;
            let _ = ops.remove(Events::empty_raw(fd));
            self.clients.remove(&fd);
            if full {
                drop(ops.add(self.listening()));
            }
            return;
        }
        let wanted = if client.has_output() {
            EventSet::OUT
        } else if client.takes_input() {
            EventSet::IN
        } else {
            // It waits for the guest's end; its own is told without being asked for.
            EventSet::empty()
        };
        if let Err(error) = ops.modify(Events::new_raw(fd, wanted)) {
            log::warn!("control socket: {error}");
        }
    }
}

fn serve_line<H: Handler>(client: &mut Connection, handler: &mut H, line: &[u8]) {
    if line.trim_ascii().is_empty() {
        return;
    }
    let request = match read_request(line) {
        Ok(request) => request,
        // Without a request there is no id: JSON-RPC wants null.
        Err(error) => return push(client, None, Err(error)),
    };
    match Method::of(&request) {
        Ok(Method::Wait) if client.waiting.len() == MAX_WAITS => {
            let message = format!("{MAX_WAITS} requests of this client wait already");
            answer(client, request.id, Err(Error::vm(message)));
        }
        Ok(Method::Wait) => client.waiting.extend(request.id),
        Ok(method) => answer(client, request.id, handler.call(method)),
        Err(error) => answer(client, request.id, Err(error)),
    }
}

fn read_request(line: &[u8]) -> Result<Request, Error> {
    let value: Value = serde_json::from_slice(line).map_err(|error| Error::parse(&error))?;
    let request: Request = serde_json::from_value(value)
        .map_err(|error| Error::request(format!("the line is no JSON-RPC request: {error}")))?;
    if request.jsonrpc != "2.0" {
        return Err(Error::request(format!(
            "`jsonrpc` is \"{}\", and must be \"2.0\"",
            request.jsonrpc
        )));
    }
    Ok(request)
}

/// Answers a request, unless it is a notification.
fn answer(client: &mut Connection, id: Option<Id>, outcome: Result<Value, Error>) {
    if id.is_some() {
        push(client, id, outcome);
    }
}

fn push(client: &mut Connection, id: Option<Id>, outcome: Result<Value, Error>) {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    let response = Response {
        jsonrpc: "2.0".to_owned(),
        id,
        result,
        error,
    };
    client.push(&serde_json::to_string(&response).expect("plain structs and JSON values"));
}

impl<H: Handler> MutEventSubscriber for Server<H> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(self.listening()) {
            self.refused = Some(error.to_string());
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.socket.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), events.event_set(), ops);
        }
    }
}

#[cfg(test)]
mod tests;
