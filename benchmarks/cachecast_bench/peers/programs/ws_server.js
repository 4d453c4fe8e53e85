// ws on Node: clients by path, records of the control connection broadcast as the manual shows.
"use strict";

const net = require("net");
const { WebSocket, WebSocketServer } = require("ws");

const [port, publishPort] = process.argv.slice(2).map(Number);
const channels = new Map();

const server = new WebSocketServer({
  host: "127.0.0.1",
  port,
  backlog: 4096,
  perMessageDeflate: false,
  clientTracking: false,
});

server.on("connection", (client, request) => {
  const channel = request.url.slice(1);
  if (!channels.has(channel)) channels.set(channel, new Set());
  const members = channels.get(channel);
  members.add(client);
  client.on("close", () => members.delete(client));
  client.on("error", () => members.delete(client));
});

function broadcast(channel, message) {
  for (const client of channels.get(channel) ?? []) {
    if (client.readyState === WebSocket.OPEN) client.send(message, { binary: false });
  }
}

net
  .createServer((socket) => {
    let pending = Buffer.alloc(0);
    socket.on("data", (data) => {
      pending = pending.length ? Buffer.concat([pending, data]) : data;
      let at = 0;
      while (pending.length - at >= 6) {
        const length = pending.readUInt32BE(at);
        if (pending.length - at - 4 < length) break;
        const start = at + 6 + pending.readUInt16BE(at + 4);
        const channel = pending.toString("utf8", at + 6, start);
        broadcast(channel, pending.subarray(start, at + 4 + length));
        at += 4 + length;
      }
      pending = pending.subarray(at);
    });
    socket.on("error", () => socket.destroy());
  })
  .listen(publishPort, "127.0.0.1");
