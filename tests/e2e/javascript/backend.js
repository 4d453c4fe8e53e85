// An application's own backend, on the npm `pusher` library: it publishes, authorizes channels,
// signs users in and receives webhooks. It also serves the page that runs in Chromium.
import { createServer } from 'node:http';
import * as net from 'node:net';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { emit, serveLines } from './lines.js';

const require = createRequire(import.meta.url);
const Pusher = require('pusher');
const { version } = require('pusher/package.json');

const root = new URL('..', import.meta.url);
const FILES = {
  '/page.html': ['javascript/page.html', 'text/html; charset=utf-8'],
  '/stage.js': ['javascript/stage.js', 'text/javascript; charset=utf-8'],
  '/echo.js': ['node_modules/laravel-echo/dist/echo.js', 'text/javascript; charset=utf-8'],
  '/sockjs.js': ['node_modules/pusher-js/dist/web/sockjs.min.js', 'text/javascript'],
  '/pusher.js': ['node_modules/pusher-js/dist/web/pusher.min.js', 'text/javascript'],
  '/pusher-with-encryption.js': [
    'node_modules/pusher-js/dist/web/pusher-with-encryption.min.js',
    'text/javascript',
  ],
};

const apps = new Map();

const readBody = async (request) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
};

// Who it is that asks stands in the request, where a real backend would look at its cookie.
const authorizeChannel = (pusher, form) => {
  const channel = form.get('channel_name');
  const member = channel.startsWith('presence-')
    ? { user_id: form.get('user_id'), user_info: JSON.parse(form.get('user_info') ?? 'null') }
    : undefined;
  return pusher.authorizeChannel(form.get('socket_id'), channel, member);
};

const authenticateUser = (pusher, form) => {
  const user = { id: form.get('user_id'), user_info: JSON.parse(form.get('user_info') ?? 'null') };
  if (form.has('watchlist')) user.watchlist = JSON.parse(form.get('watchlist'));
  return pusher.authenticateUser(form.get('socket_id'), user);
};

const receiveWebhook = (name, pusher, request, rawBody) => {
  const webhook = pusher.webhook({ rawBody, headers: request.headers });
  const isValid = webhook.isValid();
  emit({
    client: `webhooks:${name}`,
    on: 'webhook',
    is_valid: isValid,
    key: request.headers['x-pusher-key'],
    age_ms: isValid ? Date.now() - webhook.getTime().getTime() : null,
    events: isValid ? webhook.getEvents() : [],
  });
};

const answer = async (request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  if (request.method === 'GET' && FILES[pathname]) {
    const [path, type] = FILES[pathname];
    response.writeHead(200, { 'Content-Type': type }).end(readFileSync(new URL(path, root)));
    return;
  }
  const [, name, action] = pathname.split('/');
  const pusher = apps.get(name);
  if (request.method !== 'POST' || pusher === undefined) {
    response.writeHead(404).end();
    return;
  }
  const body = await readBody(request);
  if (action === 'webhook') {
    receiveWebhook(name, pusher, request, body);
    response.writeHead(200).end();
    return;
  }
  const form = new URLSearchParams(body);
  if (form.has('forbidden')) {
    response.writeHead(403).end('forbidden');
    return;
  }
  const sign = action === 'auth-channel' ? authorizeChannel : authenticateUser;
  response
    .writeHead(200, { 'Content-Type': 'application/json' })
    .end(JSON.stringify(sign(pusher, form)));
};

const server = createServer((request, response) => {
  answer(request, response).catch((error) => response.writeHead(500).end(String(error)));
});

// A load balancer in front of several nodes: it forwards new connections to the one that is named.
const balancers = new Map();
const forward = ({ name, port }) => {
  const known = balancers.get(name);
  if (known) {
    known.target = port;
    return known.port;
  }
  return new Promise((resolve) => {
    const balancer = { target: port };
    const listener = net.createServer((client) => {
      const node = net.connect(balancer.target, '127.0.0.1');
      const ways = [
        [client, node],
        [node, client],
      ];
      for (const [one, other] of ways) {
        one.pipe(other);
        one.on('error', () => other.destroy());
        one.on('close', () => other.destroy());
      }
    });
    listener.listen(0, '127.0.0.1', () => {
      balancer.port = listener.address().port;
      balancers.set(name, balancer);
      resolve(balancer.port);
    });
  });
};

const read = async (response) => ({ status: response.status, body: await response.json() });

server.listen(0, '127.0.0.1', () => {
  serveLines(
    {
      forward,
      open({ name, options }) {
        apps.set(name, new Pusher(options));
      },
      async trigger({ name, channels, event, data, params }) {
        return read(await apps.get(name).trigger(channels, event, data, params));
      },
      async trigger_batch({ name, batch }) {
        return read(await apps.get(name).triggerBatch(batch));
      },
      async get({ name, path, params }) {
        return read(await apps.get(name).get({ path, params }));
      },
      async send_to_user({ name, user_id: userId, event, data }) {
        return read(await apps.get(name).sendToUser(userId, event, data));
      },
      async terminate({ name, user_id: userId }) {
        return read(await apps.get(name).terminateUserConnections(userId));
      },
    },
    { port: server.address().port, versions: { node: process.version, pusher: version } }
  );
});
