//! An accepted connection, encrypted or not, and who is at its other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::certificate::Certificate;

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// `None` = the connection is not encrypted, or the listener asks for no certificate.
    pub certificate: Option<Arc<Certificate>>,
}

/// What bytes travel on.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that may be spoken on.
pub struct Connection {
    io: Box<dyn Io>,
    peer: Peer,
}

impl Connection {
    /// Not encrypted.
    pub fn plain(io: impl Io + 'static, address: SocketAddr) -> Connection {
        Connection { io: Box::new(io), peer: Peer { address, certificate: None } }
    }

    /// Shakes hands, as the server. The caller bounds the time.
    pub async fn encrypted(
        config: Arc<ServerConfig>,
        io: impl Io + 'static,
        address: SocketAddr,
    ) -> io::Result<Connection> {
        let stream = TlsAcceptor::from(config).accept(io).await?;
        let (_, session) = stream.get_ref();
        let certificate = match session.peer_certificates().and_then(<[_]>::first) {
            None => None,
            Some(der) => {
                let read = Certificate::read(der);
                Some(Arc::new(read.map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?))
            }
        };
        Ok(Connection { io: Box::new(stream), peer: Peer { address, certificate } })
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
