/** A broker as people run it: `muster broker` in a process of its own. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import type { Test } from 'tap'
import type { ProcessMessage } from '#shared/service'
import { MUSTER } from './plane.ts'

export interface BrokerProcess {
  readonly process: ChildProcess
  readonly port: number
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>
  /** SIGTERM; resolves with the exit code. */
  stop(): Promise<number | null>
}

/** Starts `muster broker` and waits until it is ready; it is killed when the test ends. */
export async function startBrokerProcess(t: Test, args: readonly string[]): Promise<BrokerProcess> {
  const child = fork(MUSTER, ['broker', ...args], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
  const gone = once(child, 'exit')
  const said = text(child.stderr as NonNullable<typeof child.stderr>) // piped, above
  const kill = async () => {
    child.kill('SIGKILL')
    await gone
  }
  t.teardown(kill)
  const message = await Promise.race([firstMessage(child), gone.then(() => null)])
  if (message?.type !== 'ready') throw new Error(`The broker did not start: ${await said}`)
  return {
    process: child,
    port: Number(new URL(message.details.broker ?? '').port),
    kill,
    async stop() {
      child.kill('SIGTERM')
      const [code] = await gone
      return code
    },
  }
}

/** What it says when it does not start: its message over IPC, its exit code and its last line. */
export async function failingBroker(
  args: readonly string[],
): Promise<{ status: number | null; line: string; message: ProcessMessage | null }> {
  const child = fork(MUSTER, ['broker', ...args], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
  const messages: ProcessMessage[] = []
  child.on('message', (message: ProcessMessage) => messages.push(message))
  const [[status], said] = await Promise.all([
    once(child, 'exit'),
    text(child.stderr as NonNullable<typeof child.stderr>), // piped, above
  ])
  const line = said.split('\n').find((one) => one.startsWith('Cannot')) ?? said
  return { status, line, message: messages[0] ?? null }
}

async function firstMessage(child: ChildProcess): Promise<ProcessMessage> {
  const [message] = await once(child, 'message', { signal: AbortSignal.timeout(30_000) })
  return message
}
