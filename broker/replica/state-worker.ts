import { once } from 'node:events'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { finishState } from './state-finish.ts'

/** What this module is started with as a thread. */
interface Task {
  readonly finish: string
}

/**
 * Finishes a state file in a thread of its own, so that the event loop stays free for seconds that sorting takes.
 * @throws what SQLite throws; the signal's reason when it gives up
 */
export async function finishElsewhere(path: string, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted()
  const worker = new Worker(new URL(import.meta.url), { workerData: { finish: path } satisfies Task })
  try {
    await once(worker, 'message', signal ? { signal } : {}) // an error of the thread rejects it
  } finally {
    await worker.terminate()
  }
}

function isTask(data: unknown): data is Task {
  return typeof data === 'object' && data !== null && 'finish' in data && typeof data.finish === 'string'
}

if (!isMainThread && isTask(workerData)) {
  finishState(workerData.finish)
  parentPort?.postMessage('finished')
}
