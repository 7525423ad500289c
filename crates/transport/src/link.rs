//! One TCP connection: Noise handshake, hellos, then frames both ways, many to a packet.

use crate::{Event, HANDSHAKE_TIME, LinkId, Shared};
use base::FRAME_BYTES_MAX;
use bytes::{Buf, Bytes, BytesMut};
use snow::StatelessTransportState;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use wire::Keys;

const NOISE: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// How long the other machine may be silent.
const SILENCE: Duration = Duration::from_secs(3);
/// The largest Noise message.
const PACKET_BYTES_MAX: usize = 65_535;
/// What encryption adds.
const TAG_BYTES: usize = 16;
/// How much room there is at least for what is received at once.
const RECEIVE_BYTES: usize = PACKET_BYTES_MAX + 2;
/// How much of the sending buffer is kept between bursts.
const SEND_BYTES_KEPT: usize = 8 * 1024 * 1024;
/// How many bytes may wait to be sent to one peer: several whole batches, and many small ones.
const QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The sending end of a link. Dropping it closes the link.
pub(crate) struct Link {
    queue: mpsc::UnboundedSender<Bytes>,
    /// Bytes queued and not yet handed to the system: what bounds the queue.
    queued: Arc<AtomicUsize>,
    traffic: Arc<Traffic>,
}

/// How many bytes of frames went each way.
#[derive(Default)]
struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Link {
    /// `false`: the queue is full.
    pub(crate) fn send(&self, frame: Bytes) -> bool {
        let queued = self.queued.fetch_add(frame.len() + 4, Ordering::Relaxed);
        let bytes = frame.len() as u64;
        let taken = queued < QUEUE_BYTES_MAX && self.queue.send(frame).is_ok();
        self.traffic.sent.fetch_add(if taken { bytes } else { 0 }, Ordering::Relaxed);
        taken
    }

    /// How many bytes of frames were sent, and how many were received.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        (self.traffic.sent.load(Ordering::Relaxed), self.traffic.received.load(Ordering::Relaxed))
    }

    pub(crate) fn idle(&self) -> bool {
        self.queued.load(Ordering::Relaxed) == 0
    }
}

/// Runs a connection to its end. `false`: it never became a link.
pub(crate) async fn run(mut stream: TcpStream, addr: SocketAddr, dialled: bool, shared: &Arc<Shared>) -> bool {
    let _ = stream.set_nodelay(true);
    mind_silence(&stream);
    let proved = tokio::time::timeout(HANDSHAKE_TIME, handshake(&mut stream, dialled, shared)).await;
    // Wrong cookie, wrong program, too slow: closed without a word.
    let Ok(Ok((noise, mut input, hello))) = proved else { return false };
    let noise = Arc::new(noise);
    let (read, write) = stream.into_split();
    let (queue, frames) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    let link = shared.next_link();
    let traffic: Arc<Traffic> = Arc::default();
    shared.links().insert(link, Link { queue, queued: queued.clone(), traffic: traffic.clone() });
    if shared.events.send(Event::Linked { link, dialled, addr, hello }).await.is_err() {
        return true;
    }
    let sender = tokio::spawn(send_frames(write, noise.clone(), frames, queued));
    input.socket = Some(read);
    let _ = receive_frames(input, &noise, (link, &traffic), shared, sender).await;
    shared.links().remove(&link);
    let _ = shared.events.send(Event::Unlinked(link)).await;
    true
}

/// A cut wire ends a link, whether anything is being sent or not: also where datagrams do not get through, and SWIM is blind.
fn mind_silence(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new().with_time(SILENCE / 3).with_interval(SILENCE / 3).with_retries(2);
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(SILENCE));
}

fn noise_error(e: snow::Error) -> Error {
    Error::new(ErrorKind::InvalidData, e.to_string())
}

async fn read_packet(from: &mut (impl AsyncReadExt + Unpin)) -> Result<Vec<u8>> {
    let mut packet = vec![0; usize::from(from.read_u16().await?)];
    from.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn write_packet(to: &mut (impl AsyncWriteExt + Unpin), packet: &[u8]) -> Result<()> {
    to.write_u16(packet.len() as u16).await?;
    to.write_all(packet).await
}

fn builder(keys: &Keys) -> Result<snow::Builder<'_>> {
    let params = NOISE.parse().map_err(noise_error)?;
    snow::Builder::new(params).psk(0, &keys.stream).map_err(noise_error)
}

/// The key that whoever dialled has proved to know, of those that count.
fn respond(packet: &[u8], shared: &Shared, buffer: &mut [u8]) -> Result<snow::HandshakeState> {
    let mut failed = Error::from(ErrorKind::InvalidData);
    for keys in std::iter::once(&shared.keys).chain(&shared.accept) {
        let mut state = builder(keys)?.build_responder().map_err(noise_error)?;
        match state.read_message(packet, buffer) {
            Ok(_) => return Ok(state),
            Err(e) => failed = noise_error(e),
        }
    }
    Err(failed)
}

/// Both prove that they know the key, then say hello.
async fn handshake(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    dialled: bool,
    shared: &Shared,
) -> Result<(StatelessTransportState, Input, Bytes)> {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let state = if dialled {
        let mut state = builder(&shared.keys)?.build_initiator().map_err(noise_error)?;
        let len = state.write_message(&[], &mut buffer).map_err(noise_error)?;
        write_packet(stream, &buffer[..len]).await?;
        let packet = read_packet(stream).await?;
        state.read_message(&packet, &mut buffer).map_err(noise_error)?;
        state
    } else {
        let packet = read_packet(stream).await?;
        let mut state = respond(&packet, shared, &mut buffer)?;
        let len = state.write_message(&[], &mut buffer).map_err(noise_error)?;
        write_packet(stream, &buffer[..len]).await?;
        state
    };
    let noise = state.into_stateless_transport_mode().map_err(noise_error)?;
    let hello = shared.hello.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut plain = (hello.len() as u32).to_be_bytes().to_vec();
    plain.extend_from_slice(&hello);
    let len = noise.write_message(0, &plain, &mut buffer).map_err(noise_error)?;
    write_packet(stream, &buffer[..len]).await?;
    let mut input = Input { socket: None, plain: BytesMut::new(), nonce: 0 };
    loop {
        let packet = read_packet(stream).await?;
        if let Some(hello) = {
            input.open(&noise, &packet)?;
            input.frame()?
        } {
            return Ok((noise, input, hello));
        }
    }
}

/// The receiving end: decrypted bytes that are not a whole frame yet.
struct Input {
    socket: Option<OwnedReadHalf>,
    plain: BytesMut,
    nonce: u64,
}

impl Input {
    fn open(&mut self, noise: &StatelessTransportState, packet: &[u8]) -> Result<()> {
        let at = self.plain.len();
        self.plain.resize(at + packet.len(), 0);
        let len = noise.read_message(self.nonce, packet, &mut self.plain[at..]).map_err(noise_error)?;
        self.plain.truncate(at + len);
        self.nonce += 1;
        Ok(())
    }

    /// The next whole frame. A length beyond the limit ends the link.
    fn frame(&mut self) -> Result<Option<Bytes>> {
        let Some(head) = self.plain.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*head) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidData, "a frame over the limit"));
        }
        if self.plain.len() < 4 + len {
            return Ok(None);
        }
        self.plain.advance(4);
        Ok(Some(self.plain.split_to(len).freeze()))
    }
}

async fn receive_frames(
    mut input: Input,
    noise: &StatelessTransportState,
    (link, traffic): (LinkId, &Traffic),
    shared: &Shared,
    mut sender: tokio::task::JoinHandle<()>,
) -> Result<()> {
    let Some(socket) = input.socket.take() else { return Ok(()) };
    let (mut socket, mut buffer) = (socket, BytesMut::with_capacity(RECEIVE_BYTES));
    loop {
        while let Some(frame) = input.frame()? {
            traffic.received.fetch_add(frame.len() as u64, Ordering::Relaxed);
            if shared.events.send(Event::Frame(link, frame)).await.is_err() {
                return Ok(());
            }
        }
        // Whole packets are opened where they were received.
        if let Some(head) = buffer.first_chunk::<2>() {
            let end = 2 + usize::from(u16::from_be_bytes(*head));
            if buffer.len() >= end {
                input.open(noise, &buffer[2..end])?;
                buffer.advance(end);
                continue;
            }
        }
        buffer.reserve(RECEIVE_BYTES);
        let read = tokio::select! {
            read = socket.read_buf(&mut buffer) => read?,
            // Closed by this side, or the socket broke while sending.
            _ = &mut sender => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Sends whatever is queued, as much as there is in each packet, until the link is dropped.
async fn send_frames(
    mut socket: OwnedWriteHalf,
    noise: Arc<StatelessTransportState>,
    mut frames: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
) {
    // `out` is never cleared, only written over: its bytes need not be zeroed again.
    let (mut burst, mut plain, mut out, mut nonce) = (Vec::new(), BytesMut::new(), Vec::new(), 1);
    while frames.recv_many(&mut burst, 256).await > 0 {
        let mut bytes = 0;
        for frame in burst.drain(..) {
            plain.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            plain.extend_from_slice(&frame);
            bytes += frame.len() + 4;
        }
        let mut used = 0;
        while !plain.is_empty() {
            let piece = plain.split_to(plain.len().min(PACKET_BYTES_MAX - TAG_BYTES));
            let end = used + 2 + piece.len() + TAG_BYTES;
            if out.len() < end {
                out.resize(end, 0);
            }
            let Ok(len) = noise.write_message(nonce, &piece, &mut out[used + 2..end]) else { return };
            nonce += 1;
            out[used..used + 2].copy_from_slice(&(len as u16).to_be_bytes());
            used = end;
        }
        if socket.write_all(&out[..used]).await.is_err() {
            return;
        }
        // What one large burst took is not kept for ever.
        out.truncate(SEND_BYTES_KEPT);
        out.shrink_to(SEND_BYTES_KEPT);
        queued.fetch_sub(bytes, Ordering::Relaxed);
    }
    let _ = socket.shutdown().await;
}

/// What a stranger sends first, and what frames come out of what a peer sends.
#[cfg(fuzzing)]
pub(crate) async fn fuzz(bytes: &[u8], shared: &Shared) {
    for dialled in [false, true] {
        let _ = handshake(&mut tokio::io::join(bytes, tokio::io::sink()), dialled, shared).await;
    }
    let mut input = Input { socket: None, plain: BytesMut::from(bytes), nonce: 0 };
    while let Ok(Some(_)) = input.frame() {}
}
