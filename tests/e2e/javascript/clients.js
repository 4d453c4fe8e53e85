// pusher-js and laravel-echo in Node.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import Echo from 'laravel-echo';
import { emit, serveLines } from './lines.js';
import { createStage } from './stage.js';

const require = createRequire(import.meta.url);
const version = (name) =>
  JSON.parse(readFileSync(new URL(`../node_modules/${name}/package.json`, import.meta.url))).version;

const stage = createStage({
  Pusher: require('pusher-js'),
  PusherWithEncryption: require('pusher-js'), // the Node build has it built in
  Echo,
  emit,
});
serveLines(stage, {
  versions: {
    node: process.version,
    'pusher-js': version('pusher-js'),
    'laravel-echo': version('laravel-echo'),
  },
});
