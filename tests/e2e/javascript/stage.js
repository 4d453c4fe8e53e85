// The clients that a test plays with: pusher-js and laravel-echo, in Node and in a page alike.
// Each function is one request of program.py; what the SDKs report goes out through emit().

const describeErrors = (key, value) =>
  value instanceof Error ? { name: value.name, message: value.message } : value;

const plain = (value) => {
  try {
    return JSON.parse(JSON.stringify(value, describeErrors) ?? 'null');
  } catch {
    return { text: String(value) }; // a socket's own error event refers to itself
  }
};

export function createStage({ Pusher, PusherWithEncryption, Echo, emit }) {
  const clients = new Map();
  const echoes = new Map();

  const tell = (client, on, fields) => emit({ client, on, ...plain(fields) });

  const watch = (client, pusher) => {
    clients.set(client, pusher);
    pusher.connection.bind('state_change', ({ previous, current }) =>
      tell(client, 'state', { previous, state: current, at_ms: Date.now() })
    );
    pusher.connection.bind('error', (error) => tell(client, 'error', { error }));
    pusher.connection.bind('message', (message) => tell(client, 'message', message));
    pusher.user.bind_global((event, data) => tell(client, 'user', { event, data }));
    pusher.user.watchlist.bind_global((event, data) => tell(client, 'watchlist', { event, data }));
  };

  const subscribe = (client, channel) => {
    const joined = clients.get(client).subscribe(channel);
    joined.bind_global((event, data) => tell(client, 'event', { channel, event, data }));
  };

  return {
    // A cached value as server-sent events; in a page only, for Node has no EventSource.
    follow({ client, url }) {
      const source = new EventSource(url);
      const hear = ({ lastEventId, data }) => tell(client, 'followed', { event_id: lastEventId, data });
      source.onmessage = hear;
      source.addEventListener('pusher:cache_miss', hear);
    },
    open({ client, key, options, encryption }) {
      const Class = encryption ? PusherWithEncryption : Pusher;
      watch(client, new Class(key, options));
    },
    socket_id({ client }) {
      return clients.get(client).connection.socket_id;
    },
    subscribe({ client, channel }) {
      subscribe(client, channel);
    },
    // In one go, so that all of it leaves before anything can come back.
    subscribe_all({ client, channels }) {
      channels.forEach((channel) => subscribe(client, channel));
    },
    bind({ client, channel, event }) {
      clients
        .get(client)
        .channel(channel)
        .bind(event, (data, metadata) => tell(client, 'bound', { channel, event, data, metadata }));
    },
    unsubscribe({ client, channel }) {
      clients.get(client).unsubscribe(channel);
    },
    trigger({ client, channel, event, data }) {
      return clients.get(client).channel(channel).trigger(event, data);
    },
    members({ client, channel }) {
      const { count, myID, me, members } = clients.get(client).channel(channel).members;
      return plain({ count, my_id: myID, me, members });
    },
    subscription_count({ client, channel }) {
      return clients.get(client).channel(channel).subscriptionCount ?? null;
    },
    signin({ client }) {
      clients.get(client).signin();
    },
    disconnect({ client }) {
      clients.get(client)?.disconnect();
      clients.delete(client);
    },

    echo_open({ client, options, encryption }) {
      const Class = encryption ? PusherWithEncryption : Pusher;
      const echo = new Echo({ ...options, Pusher: Class });
      echoes.set(client, { echo, channels: new Map() });
      watch(client, echo.connector.pusher);
    },
    // method: channel, private, encryptedPrivate or join, as an application calls them
    echo_join({ client, method, channel, event }) {
      const { echo, channels } = echoes.get(client);
      const joined = echo[method](channel);
      channels.set(channel, joined);
      joined.subscribed(() => tell(client, 'echo', { channel, event: 'subscribed' }));
      joined.error((error) => tell(client, 'echo', { channel, event: 'error', data: error }));
      joined.listen(event, (data) => tell(client, 'echo', { channel, event, data }));
      joined.listen('.pusher:cache_miss', () => tell(client, 'echo', { channel, event: 'miss' }));
      if (method === 'join') {
        for (const moment of ['here', 'joining', 'leaving']) {
          joined[moment]((data) => tell(client, 'echo', { channel, event: moment, data }));
        }
      }
      if (method !== 'channel') {
        joined.listenForWhisper('typing', (data) =>
          tell(client, 'echo', { channel, event: 'whisper', data })
        );
      }
    },
    echo_whisper({ client, channel, data }) {
      echoes.get(client).channels.get(channel).whisper('typing', data);
    },
    echo_leave({ client, channel }) {
      echoes.get(client).echo.leave(channel);
    },
    echo_close({ client }) {
      echoes.get(client).echo.disconnect();
      echoes.delete(client);
      clients.delete(client);
    },
  };
}
