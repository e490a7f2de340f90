/** A whole plane in child processes, for the tests of flows: `muster up --no-demo` on free ports. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import { type Plane, startPlane as start } from '../../device-sim/throwaway-plane.ts'

export const MUSTER = fileURLToPath(new URL('../../bin/muster.mjs', import.meta.url))

/** @param options.data a directory that the test removes; without it the plane removes its own */
export async function startPlane(t: Test, options: { data?: string } = {}): Promise<Plane> {
  const plane = await start({ random: Math.random, environment: process.env, ...options })
  t.teardown(() => plane.stop())
  return plane
}

export function adminOf(t: Test, plane: Plane): AdminClient {
  const admin = openAdminClient(readOperatorProfile(plane.ready.operatorProfile))
  t.teardown(() => admin.close())
  return admin
}

export interface Ended {
  /** Exit code; null when a signal ended it. */
  readonly status: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs `muster …` to its end, at most a minute unless it is said otherwise. */
export async function muster(
  args: readonly string[],
  options: { environment?: NodeJS.ProcessEnv; timeoutMs?: number } = {},
): Promise<Ended> {
  const child = spawn(process.execPath, [MUSTER, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...options.environment },
    timeout: options.timeoutMs ?? 60_000,
    killSignal: 'SIGKILL',
  })
  const [[status, signal], stdout, stderr] = await Promise.all([
    once(child, 'close'),
    text(child.stdout),
    text(child.stderr),
  ])
  return { status, signal, stdout, stderr }
}
