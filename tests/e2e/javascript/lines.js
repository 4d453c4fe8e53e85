// Requests come in as lines of JSON and are answered so; when stdin closes, the process leaves.
import { createInterface } from 'node:readline';

export const emit = (message) => process.stdout.write(JSON.stringify(message) + '\n');

export function serveLines(operations, ready) {
  const lines = createInterface({ input: process.stdin });
  lines.on('line', async (line) => {
    const { id, op, ...request } = JSON.parse(line);
    try {
      emit({ id, result: (await operations[op](request)) ?? null });
    } catch (error) {
      emit({ id, error: `${error.name}: ${error.message} ${error.body ?? ''}`.trim() });
    }
  });
  lines.on('close', () => process.exit(0));
  emit({ client: 'program', on: 'ready', ...ready });
}
