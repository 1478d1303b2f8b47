/** A drawing of the page as a file: SVG with its colours inside, or PNG. */

const PROPERTIES = [
  'fill',
  'stroke',
  'stroke-width',
  'font-family',
  'font-size',
  'font-weight',
  'opacity'
] as const;
const SCALE = 2; // pixels of the PNG for one of the page

/** Return a drawing as text that needs no style sheet, on the colour of the page behind it. */
export function svgText(drawing: SVGSVGElement): string {
  const made = drawing.cloneNode(true) as SVGSVGElement;
  const copies = [...made.querySelectorAll<SVGElement>('*')];
  [...drawing.querySelectorAll('*')].forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const property of PROPERTIES) {
      copies[index]?.setAttribute(property, style.getPropertyValue(property));
    }
    for (const name of ['class', 'tabindex', 'data-box', 'data-lm-suppress-shortcuts']) {
      copies[index]?.removeAttribute(name);
    }
  });
  made.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  const page = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  page.setAttribute('width', '100%');
  page.setAttribute('height', '100%');
  page.setAttribute('fill', pageColor(drawing));
  made.prepend(page);
  return new XMLSerializer().serializeToString(made);
}

function pageColor(element: Element): string {
  for (let one: Element | null = element; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if (color && color !== 'transparent' && color !== 'rgba(0, 0, 0, 0)') {
      return color;
    }
  }
  return 'white';
}

export async function pngOf(drawing: SVGSVGElement): Promise<Blob> {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(drawing))}`;
  await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = Number(drawing.getAttribute('width')) * SCALE;
  canvas.height = Number(drawing.getAttribute('height')) * SCALE;
  canvas.getContext('2d')?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) =>
    canvas.toBlob(
      blob => (blob ? resolve(blob) : reject(new Error('the browser made no picture'))),
      'image/png'
    )
  );
}
