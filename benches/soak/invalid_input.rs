//! Input that a server must reject.

/// Forbidden after the welcome: first byte and payload of a frame.
pub const FORBIDDEN: [(u8, &[u8]); 9] = [
    (0x81, b"[7,\"newNotification\",1]"),
    (0x81, b"[2,\"call\",\"procedure\"]"),
    (0x81, b"{\"no\":\"list\"}"),
    (0x81, b"not JSON"),
    (0x81, b"\xff\xfe"),
    (0xc1, b"[5,\"newNotification\"]"),
    (0x80, b"goes on with nothing"),
    (0x89, &[b'x'; 126]),
    (0x83, b"unknown"),
];

/// Requests that open no WebSocket.
pub const GARBAGE: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /wss HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\0\r\n\r\n",
    b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\n",
];
