//! The socket itself.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

/// A control socket that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody answers there.
    #[error("--control {}: another VMM serves that socket", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("--control {}: there is a file of another kind; name a path where there is none", .0.display())]
    NoSocket(PathBuf),
    /// The host refuses.
    #[error("--control {}: {source}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A listening socket. Dropping it removes its path.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    /// What to remove in the end.
    path: Option<PathBuf>,
}

impl ControlSocket {
    /// Listens at `path`, with mode 0600. A socket that nobody serves is replaced.
    ///
    /// Changes the process's umask for a moment: belongs before other threads make files.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let host = |source| ListenError::Host {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::NoSocket(path.to_owned()));
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(host)?;
                }
                Ok(_) => return Err(ListenError::InUse(path.to_owned())),
                Err(error) => return Err(host(error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(host(error)),
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(|error| {
            // Made and not listened to. One that somebody else has made meanwhile is in use.
            if error.kind() != ErrorKind::AddrInUse && is_abandoned(path) {
                let _ = std::fs::remove_file(path);
            }
            host(error)
        })?;
        let socket = Self {
            listener,
            path: Some(path.to_owned()),
        };
        socket.listener.set_nonblocking(true).map_err(host)?;
        Ok(socket)
    }

    /// Leaves the path behind in the end, for a process that may not remove files then.
    #[must_use]
    pub fn leave_path(mut self) -> Self {
        self.path = None;
        self
    }
}

/// Whether there is a socket that nobody listens to.
fn is_abandoned(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it before.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("control.{name}.{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_socket_is_the_owners_alone_and_goes_with_its_server() {
        let folder = folder("mode");
        let path = folder.join("socket");
        let socket = ControlSocket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(second, ListenError::InUse(_)), "{second}");
        drop(socket);
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_socket_that_a_killed_server_left_is_replaced_and_another_file_is_not() {
        let folder = folder("stale");
        let path = folder.join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(ControlSocket::bind(&path).unwrap().leave_path());
        assert!(path.exists());
        drop(ControlSocket::bind(&path).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let error = ControlSocket::bind(&folder.join("no/such/folder")).unwrap_err();
        assert!(error.to_string().contains("no/such/folder"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
