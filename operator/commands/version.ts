import { readFileSync } from 'node:fs'
import type { Command } from 'commander'
import type { Context } from '../context.ts'
import type { Use } from '../verb.ts'

/** The version in package.json. */
export function musterVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version // npm requires it to be there
}

export function addVersionCommand(program: Command, use: Use): void {
  program.command('version').description('version of Muster and of Node').action(use(version))
}

async function version(context: Context) {
  const document = { version: musterVersion(), node: process.versions.node }
  return context.answer(document, () => `muster ${document.version} (Node ${document.node})`)
}
