//! A plain implementation of RFC 6455, sections 5 to 7: from all bytes of a client to the events
//! and answers of a server. It is independent of the daemon's code.

/// An event for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    Pong,
    /// A ping; its payload must be sent back.
    AnsweredPing(Vec<u8>),
    /// A Close frame; it must be answered with this code.
    AnsweredClose(Option<u16>),
}

/// The state after all bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Open. If a frame is incomplete, it is already known to violate these.
    Open(Vec<Fault>),
    /// The client has closed the connection.
    Closed,
    /// The client has violated one of these. If there are several, any of them may be reported.
    Violated(Vec<Fault>),
}

/// Violations, by the status code of the Close frame (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 1002
    Protocol,
    /// 1007
    NotUtf8,
    /// 1009
    TooBig,
}

/// An incomplete message.
struct Message {
    is_text: bool,
    payload: Vec<u8>,
}

/// Section 5.2.
struct Header {
    is_final: bool,
    reserved: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    payload: u64,
    length: usize,
}

/// Reads all of `bytes`; messages may have at most `most` bytes.
pub fn read(bytes: &[u8], most: usize) -> (Vec<Event>, End) {
    let mut events = Vec::new();
    let mut open: Option<Message> = None;
    let mut rest = bytes;
    loop {
        let Some(header) = header(rest) else { return (events, End::Open(faults_so_far(rest))) };
        let mut faults = header.faults(most, open.as_ref());
        let whole = header.payload.saturating_add(header.length as u64);
        if (rest.len() as u64) < whole {
            return (events, End::Open(faults));
        }
        let (frame, after) = rest.split_at(whole as usize);
        rest = after;
        let payload = unmasked(&frame[header.length..], header.mask);
        // The order in which several faults are detected does not matter.
        faults.extend(payload_fault(&header, &payload, open.as_ref()));
        if !faults.is_empty() {
            return (events, End::Violated(faults));
        }
        match header.opcode {
            0x8 => {
                events.push(Event::AnsweredClose(answer_to_close(&payload)));
                return (events, End::Closed);
            }
            0x9 => events.push(Event::AnsweredPing(payload)),
            0xa => events.push(Event::Pong),
            opcode => {
                let new = Message { is_text: opcode == 0x1, payload: Vec::new() };
                let mut message = open.take().unwrap_or(new);
                message.payload.extend(payload);
                if !header.is_final {
                    open = Some(message);
                } else if message.is_text {
                    events.push(Event::Text(String::from_utf8(message.payload).unwrap()));
                } else {
                    events.push(Event::Binary(message.payload));
                }
            }
        }
    }
}

/// `None` if it is incomplete. (Section 5.2 requires the sender to use the shortest encoding of a
/// length, but a receiver need not reject others.)
fn header(bytes: &[u8]) -> Option<Header> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (payload, mut length) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()), 10),
        short => (u64::from(short), 2),
    };
    let mut mask = None;
    if second & 0x80 != 0 {
        mask = Some(bytes.get(length..length + 4)?.try_into().unwrap());
        length += 4;
    }
    let (is_final, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
    Some(Header { is_final, reserved, opcode, mask, payload, length })
}

/// Faults that are known from the first bytes of an incomplete header.
fn faults_so_far(bytes: &[u8]) -> Vec<Fault> {
    let opcode = bytes.first().map_or(0, |first| first & 0x0f);
    if is_known(opcode) { Vec::new() } else { vec![Fault::Protocol] }
}

fn is_known(opcode: u8) -> bool {
    matches!(opcode, 0x0..=0x2 | 0x8..=0xa)
}

impl Header {
    /// Faults that are known without the payload.
    fn faults(&self, most: usize, open: Option<&Message>) -> Vec<Fault> {
        let is_control = self.opcode >= 0x8;
        let is_continuation = self.opcode == 0x0;
        let so_far = if is_control { 0 } else { open.map_or(0, |open| open.payload.len() as u64) };
        let protocol = [
            self.reserved != 0,
            self.mask.is_none(),
            !is_known(self.opcode),
            is_control && (!self.is_final || self.payload > 125),
            !is_control && is_continuation != open.is_some(),
            // The most significant bit of a length must be 0.
            self.payload > u64::MAX / 2,
        ];
        let mut faults = Vec::new();
        if protocol.contains(&true) {
            faults.push(Fault::Protocol);
        }
        if so_far.saturating_add(self.payload) > most as u64 {
            faults.push(Fault::TooBig);
        }
        faults
    }
}

fn payload_fault(header: &Header, payload: &[u8], open: Option<&Message>) -> Option<Fault> {
    match header.opcode {
        // Section 5.5.1.
        0x8 if payload.len() == 1 => Some(Fault::Protocol),
        0x8 => {
            let reason = payload.get(2..).unwrap_or_default();
            std::str::from_utf8(reason).is_err().then_some(Fault::NotUtf8)
        }
        0x0..=0x2 if header.opcode == 0x1 || open.is_some_and(|open| open.is_text) => {
            let mut text = open.map_or(Vec::new(), |open| open.payload.clone());
            text.extend(payload);
            let error = std::str::from_utf8(&text).err()?;
            // A fragment may end within a character, but the message may not.
            let is_cut = error.error_len().is_none() && !header.is_final;
            (!is_cut).then_some(Fault::NotUtf8)
        }
        _ => None,
    }
}

/// Section 7.4: the same code, or that of a protocol error if the code must not be sent.
/// Tungstenite does not know 1014 (bad gateway), the last of the codes that were registered later.
fn answer_to_close(payload: &[u8]) -> Option<u16> {
    let code = u16::from_be_bytes(payload.get(..2)?.try_into().unwrap());
    let may_be_sent = matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999);
    Some(if may_be_sent { code } else { 1002 })
}

/// Section 5.3.
fn unmasked(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mask = mask.unwrap_or_default();
    payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]).collect()
}
