import { readFileSync } from 'node:fs'
import { DEFAULT_PORT_BASE, ports } from '#shared/layout'

const NAMED_BLOCK = /<!-- readme: (?<name>[a-z-]+) -->\n```sh\n(?<commands>[\s\S]*?)```/g

/** The named command blocks of the README, as they stand there. */
export function readmeBlocks(path: string): ReadonlyMap<string, string> {
  const found = readFileSync(path, 'utf8').matchAll(NAMED_BLOCK)
  return new Map([...found].map(({ groups }) => [groups?.name ?? '', groups?.commands ?? '']))
}

/** The same commands for a plane on other ports, with the CLI of this clone instead of an installed one. */
export function onPlane(commands: string, plane: { portBase: number; muster: string }): string {
  const [shown, real] = [ports(DEFAULT_PORT_BASE), ports(plane.portBase)]
  return commands
    .replaceAll(String(shown.enrollment), String(real.enrollment))
    .replaceAll(String(shown.broker), String(real.broker))
    .replaceAll('npx muster', plane.muster)
}
